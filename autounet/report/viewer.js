"use strict";
/* Looks through the slices that viewer.py packed: three linked planes, reference and prediction above the image. */
(() => {
  const box = document.getElementById("viewer-box");
  if (!box) return;
  const cases = JSON.parse(document.getElementById("viewer-data").textContent);
  const REFERENCE = [86, 180, 233], PREDICTION = [230, 159, 0], UNSURE = [255, 234, 70];
  const control = (name) => box.querySelector(`[data-control="${name}"]`);
  const figures = [...box.querySelectorAll("[data-plane]")];
  const canvases = figures.map((figure) => figure.querySelector("canvas"));
  const sliders = figures.map((figure) => figure.querySelector("input"));
  const scratch = document.createElement("canvas");
  let shown = null;
  let position = [0, 0, 0];

  const unpack = async (text) => {
    const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };

  /* The sheet of tiles back to a volume of bytes, one or three a voxel. */
  const readImage = async (found) => {
    const picture = new Image();
    picture.src = found.image;
    await picture.decode();
    const canvas = document.createElement("canvas");
    canvas.width = picture.naturalWidth;
    canvas.height = picture.naturalHeight;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(picture, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
    const [depth, height, width] = found.shape, [tall, wide] = found.tile, channels = found.colour ? 3 : 1;
    const volume = new Uint8Array(depth * height * width * channels);
    let place = 0;
    for (let z = 0; z < depth; z++) {
      const top = Math.floor(z / found.columns) * tall, left = (z % found.columns) * wide;
      for (let y = 0; y < height; y++) {
        let pixel = 4 * ((top + y) * canvas.width + left);
        for (let x = 0; x < width; x++, pixel += 4)
          for (let channel = 0; channel < channels; channel++) volume[place++] = pixels[pixel + channel];
      }
    }
    return volume;
  };

  const load = async (index) => {
    const found = cases[index];
    if (!found.volume) {
      const uncertainty = found.uncertainty ? unpack(found.uncertainty) : null;
      [found.volume, found.labels, found.predicted, found.unsure] = await Promise.all(
        [readImage(found), unpack(found.reference), unpack(found.prediction), uncertainty]);
    }
    shown = found;
    position = [...found.start];
    control("words").textContent = found.words;
    control("uncertainty").closest("label").hidden = !found.unsure;
    figures.forEach((figure, axis) => {
      figure.hidden = axis >= found.planes.length;
      if (figure.hidden) return;
      const name = found.planes[axis][0];
      figure.querySelector("[data-name]").textContent = name;
      canvases[axis].setAttribute("aria-label", `${found.name}, ${name}: arrow keys change the slice`);
      sliders[axis].max = found.shape[axis] - 1;
      sliders[axis].hidden = found.shape[axis] < 2;
      sliders[axis].setAttribute("aria-label", `${name} slice`);
    });
    drawAll();
    box.dataset.ready = found.name;
  };

  /* Rows and columns of a plane, and the voxel behind one of its pixels; rows along z are turned over. */
  const planeOf = (axis) => {
    const [depth, height, width] = shown.shape, at = position[axis];
    if (axis === 0) return { rows: height, columns: width, voxel: (r, c) => (at * height + r) * width + c };
    if (axis === 1) return { rows: depth, columns: width, voxel: (r, c) => ((depth - 1 - r) * height + at) * width + c };
    return { rows: depth, columns: height, voxel: (r, c) => ((depth - 1 - r) * height + c) * width + at };
  };
  const across = (axis) => [0, 1, 2].filter((other) => other !== axis);

  const cut = (values, plane, wanted) => {
    const flat = new Uint8Array(plane.rows * plane.columns);
    for (let r = 0, i = 0; r < plane.rows; r++)
      for (let c = 0; c < plane.columns; c++, i++) {
        const value = values[plane.voxel(r, c)];
        flat[i] = wanted && value !== wanted ? 0 : value;
      }
    return flat;
  };

  const paint = (plane, reference, prediction) => {
    const { rows, columns, voxel } = plane, pixels = new ImageData(columns, rows), data = pixels.data;
    const share = control("opacity").value / 100, unsure = control("uncertainty").checked ? shown.unsure : null;
    const mix = (place, colour, part) => {
      for (let k = 0; k < 3; k++) data[place + k] += part * (colour[k] - data[place + k]);
    };
    for (let r = 0, i = 0; r < rows; r++)
      for (let c = 0; c < columns; c++, i++) {
        const from = voxel(r, c), place = 4 * i;
        for (let k = 0; k < 3; k++) data[place + k] = shown.colour ? shown.volume[3 * from + k] : shown.volume[from];
        data[place + 3] = 255;
        if (unsure) mix(place, UNSURE, (0.85 * unsure[from]) / 255);
        const inReference = reference && reference[i], inPrediction = prediction && prediction[i];
        if (inReference) mix(place, REFERENCE, share);
        if (inPrediction) mix(place, PREDICTION, inReference ? share / 2 : share);
      }
    return pixels;
  };

  /* Strokes the edges between pixels of different classes, joined along rows and columns. */
  const outline = (context, flat, plane, wide, tall, colour, dashes, width) => {
    const { rows, columns } = plane;
    const at = (r, c) => (r < 0 || c < 0 || r >= rows || c >= columns ? 0 : flat[r * columns + c]);
    context.beginPath();
    const runs = (lines, length, differs, line) => {
      for (let i = 0; i <= lines; i++)
        for (let j = 0, from = -1; j <= length; j++) {
          const edge = j < length && differs(i, j);
          if (edge && from < 0) from = j;
          if (!edge && from >= 0) { line(i, from, j); from = -1; }
        }
    };
    runs(rows, columns, (r, c) => at(r - 1, c) !== at(r, c),
      (r, from, to) => { context.moveTo(from * wide, r * tall); context.lineTo(to * wide, r * tall); });
    runs(columns, rows, (c, r) => at(r, c - 1) !== at(r, c),
      (c, from, to) => { context.moveTo(c * wide, from * tall); context.lineTo(c * wide, to * tall); });
    context.setLineDash(dashes);
    for (const [style, size] of [["rgba(0,0,0,.4)", width + 1.2], [`rgb(${colour})`, width]]) {
      context.strokeStyle = style;
      context.lineWidth = size;
      context.stroke();
    }
    context.setLineDash([]);
  };

  const marks = (context, axis, width, height, scale) => {
    const [row, column] = across(axis);
    const along = (other, turned) => {
      const share = (position[other] + 0.5) / shown.shape[other];
      return turned ? 1 - share : share;
    };
    context.strokeStyle = "rgba(255,255,255,.45)";
    context.lineWidth = scale;
    context.beginPath();
    const x = width * along(column, false), y = height * along(row, row === 0), gap = 10 * scale;
    for (const [a, b, c, d] of [[0, y, x - gap, y], [x + gap, y, width, y], [x, 0, x, y - gap], [x, y + gap, x, height]]) {
      context.moveTo(a, b);
      context.lineTo(c, d);
    }
    context.stroke();
    const places = [[9 * scale, height / 2], [width - 9 * scale, height / 2], [width / 2, 10 * scale], [width / 2, height - 10 * scale]];
    context.font = `${12 * scale}px sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.lineWidth = 3 * scale;
    context.strokeStyle = "#000";
    context.fillStyle = "#fff";
    shown.planes[axis][1].forEach((letter, side) => {
      context.strokeText(letter, ...places[side]);
      context.fillText(letter, ...places[side]);
    });
  };

  const draw = (axis) => {
    const canvas = canvases[axis], plane = planeOf(axis), [row, column] = across(axis);
    const scale = window.devicePixelRatio || 1, room = Math.max(1, canvas.parentElement.clientWidth * scale);
    const ratio = (plane.columns * shown.spacing[column]) / (plane.rows * shown.spacing[row]);
    canvas.width = Math.max(1, Math.round(ratio >= 1 ? room : room * ratio));
    canvas.height = Math.max(1, Math.round(ratio >= 1 ? room / ratio : room));
    canvas.style.width = `${canvas.width / scale}px`;
    const wanted = Number(control("class").value);
    const reference = control("reference").checked ? cut(shown.labels, plane, wanted) : null;
    const prediction = control("prediction").checked ? cut(shown.predicted, plane, wanted) : null;
    scratch.width = plane.columns;
    scratch.height = plane.rows;
    scratch.getContext("2d").putImageData(paint(plane, reference, prediction), 0, 0);
    const context = canvas.getContext("2d");
    context.drawImage(scratch, 0, 0, canvas.width, canvas.height);
    const wide = canvas.width / plane.columns, tall = canvas.height / plane.rows;
    if (reference) outline(context, reference, plane, wide, tall, REFERENCE, [], 2 * scale);
    if (prediction) outline(context, prediction, plane, wide, tall, PREDICTION, [5 * scale, 4 * scale], 1.6 * scale);
    if (shown.planes.length > 1) marks(context, axis, canvas.width, canvas.height, scale);
    sliders[axis].value = position[axis];
    canvas.dataset.slice = position[axis];
    figures[axis].querySelector("output").textContent =
      shown.shape[axis] > 1 ? `${position[axis] + 1} of ${shown.shape[axis]}` : "";
  };

  const drawAll = () => { if (shown) shown.planes.forEach((_, axis) => draw(axis)); };

  /* True where the slice changed: at the ends a wheel moves the page again. */
  const move = (axis, by) => {
    const to = Math.min(shown.shape[axis] - 1, Math.max(0, position[axis] + by));
    if (to === position[axis]) return false;
    position[axis] = to;
    drawAll();
    return true;
  };

  const pointTo = (axis, event) => {
    const frame = canvases[axis].getBoundingClientRect(), [row, column] = across(axis);
    const within = (share, size) => Math.min(size - 1, Math.max(0, Math.floor(share * size)));
    const down = (event.clientY - frame.top) / frame.height;
    position[column] = within((event.clientX - frame.left) / frame.width, shown.shape[column]);
    position[row] = within(row === 0 ? 1 - down : down, shown.shape[row]);
    drawAll();
  };

  const KEYS = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10, Home: -1e6, End: 1e6 };
  const SWIPE = 8; /* pixels of a finger's way for one slice */

  canvases.forEach((canvas, axis) => {
    sliders[axis].addEventListener("input", () => shown && move(axis, Number(sliders[axis].value) - position[axis]));
    canvas.addEventListener("keydown", (event) => {
      if (shown && event.key in KEYS && !event.ctrlKey && !event.metaKey && !event.altKey) {
        event.preventDefault();
        move(axis, KEYS[event.key]);
      }
    });
    let turned = 0;
    canvas.addEventListener("wheel", (event) => {
      if (!shown || event.ctrlKey) return;
      turned = Math.sign(turned) === Math.sign(event.deltaY) ? turned + event.deltaY : event.deltaY;
      const fine = event.deltaMode === 0 && Math.abs(event.deltaY) < 40; /* a touch pad sends many small turns */
      if (fine && Math.abs(turned) < 24) { event.preventDefault(); return; }
      const by = -Math.sign(turned);
      turned = 0;
      if (move(axis, by)) event.preventDefault();
    }, { passive: false });
    let from = null;
    canvas.addEventListener("pointerdown", (event) => {
      if (!shown) return;
      from = { x: event.clientX, y: event.clientY, moved: false };
      if (event.pointerType === "mouse" && shown.planes.length > 1) pointTo(axis, event);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!from || !shown) return;
      if (event.pointerType === "mouse") {
        if (event.buttons & 1 && shown.planes.length > 1) pointTo(axis, event);
        return;
      }
      const by = Math.trunc((event.clientX - from.x) / SWIPE);
      if (by) { from.x += by * SWIPE; from.moved = true; move(axis, by); }
    });
    canvas.addEventListener("pointerup", (event) => {
      if (from && !from.moved && event.pointerType !== "mouse" && shown && shown.planes.length > 1) pointTo(axis, event);
      from = null;
    });
    canvas.addEventListener("pointercancel", () => { from = null; });
  });

  const open = (index) => load(index).catch((error) => {
    box.hidden = true;
    document.getElementById("viewer-problem").hidden = false;
    console.error(error);
  });
  control("case").addEventListener("change", (event) => open(Number(event.target.value)));
  for (const name of ["reference", "prediction", "uncertainty", "opacity", "class"])
    control(name).addEventListener("input", drawAll);
  box.hidden = false;
  new ResizeObserver(drawAll).observe(box); /* also draws once it is laid out */
  open(0);
})();
