"""What is wrong with cases and with sets of them: findings, never errors."""
