// The editor of the input image: its crop, and the mask that is painted over it.

import { useEffect, useRef, useState } from './vendor/hooks.mjs';
import { draw, add, clear, coverage, drawMask, EMPTY_MASK, fill, invert, readMask, redo, stroke, undo } from './mask.js';
import { drawCrop, moveCrop, targetSize } from './image.js';
import { html, IconButton } from './ui.js';

const BRUSH_SIZES = { minimum: 1, maximum: 40, default: 10 };
const KEY_STEP = 0.02;

export function Editor({ source, mask, megapixels, config, onSource, onMask, onRemove }) {
  const [mode, setMode] = useState('brush');
  const [brush, setBrush] = useState(BRUSH_SIZES.default);
  const size = targetSize(source, megapixels, config);
  const covered = coverage(mask);
  const hasMask = mask.operations.length > 0;
  const onKeyDown = (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === 'z') {
      event.preventDefault();
      onMask(event.shiftKey ? redo(mask) : undo(mask));
    }
    const step = { '[': -2, ']': 2 }[event.key];
    if (step) setBrush(Math.min(BRUSH_SIZES.maximum, Math.max(BRUSH_SIZES.minimum, brush + step)));
  };
  return html`<section class="editor" aria-label="Image and mask" onKeyDown=${onKeyDown}>
    <p>Paint over the part to change, describe its new content in the prompt, and press <b>Generate</b>.</p>
    <div class="toolbar" role="toolbar" aria-label="Mask">
      <${IconButton} icon="brush" text="Brush" label="Brush: paint what to change" pressed=${mode === 'brush'}
        onClick=${() => setMode('brush')} />
      <${IconButton} icon="erase" text="Erase" label="Erase" pressed=${mode === 'erase'} onClick=${() => setMode('erase')} />
      <label class="brush-size">Size
        <input type="range" min=${BRUSH_SIZES.minimum} max=${BRUSH_SIZES.maximum} value=${brush} aria-label="Brush size"
          onInput=${(event) => setBrush(Number(event.target.value))} />
      </label>
      <span class="divider"></span>
      <${IconButton} icon="undo" label="Undo" disabled=${!hasMask} onClick=${() => onMask(undo(mask))} />
      <${IconButton} icon="redo" label="Redo" disabled=${mask.undone.length === 0} onClick=${() => onMask(redo(mask))} />
      <${IconButton} icon="invert" label="Invert the mask" onClick=${() => onMask(add(mask, invert()))} />
      <${IconButton} icon="fill" label="Fill the mask" onClick=${() => onMask(add(mask, fill()))} />
      <${IconButton} icon="trash" label="Clear the mask" disabled=${!hasMask}
        onClick=${() => onMask(covered > 0 ? add(mask, clear()) : EMPTY_MASK)} />
      <label class="button quiet icon-only" title="Load a mask from a file">
        <span class="visually-hidden">Load a mask from a file</span>
        <svg class="icon" viewBox="0 0 24 24" aria-hidden="true"><path d="M12 16V5m0 0L8 9m4-4l4 4M5 20h14" /></svg>
        <input class="visually-hidden" type="file" accept="image/*" data-test="mask-file"
          onChange=${async (event) => onMask(await readMask(event.target.files[0], event.target.files[0].name))} />
      </label>
    </div>
    <${Canvas} source=${source} mask=${mask} size=${size} mode=${covered > 0 && mode === 'crop' ? 'brush' : mode}
      brush=${brush / 100} onSource=${onSource} onMask=${onMask} />
    <${CropControls} source=${source} size=${size} megapixels=${megapixels} config=${config} locked=${covered > 0}
      mode=${mode} onMode=${setMode} onSource=${onSource} onRemove=${onRemove} />
    <p class="hint" aria-live="polite" data-test="sent-as">
      Sent as ${size[0]} × ${size[1]} pixels.
      ${covered > 0 ? ` The mask covers ${Math.max(1, Math.round(covered * 100))} % of it; the rest is kept unchanged.` : ' Without paint, all of it changes.'}
    </p>
  </section>`;
}

function CropControls({ source, size, megapixels, config, locked, mode, onMode, onSource, onRemove }) {
  const ratios = ['original', ...Object.keys(config.sizes[megapixels] ?? {})];
  return html`<div class="crop">
    <fieldset disabled=${locked}>
      <legend class="visually-hidden">Crop</legend>
      <label>Crop
        <select value=${source.ratio}
          onChange=${(event) => onSource({ ...source, ratio: event.target.value, x: 0.5, y: 0.5 })}>
          ${ratios.map((ratio) => html`<option value=${ratio}>${ratio === 'original' ? 'Whole image' : ratio}</option>`)}
        </select>
      </label>
      <label>Zoom
        <input type="range" min="1" max="4" step="0.05" value=${source.zoom}
          onInput=${(event) => onSource({ ...source, zoom: Number(event.target.value) })} />
      </label>
      <${IconButton} icon="swap" text="Move" label="Move the crop by dragging" pressed=${mode === 'crop'}
        onClick=${() => onMode(mode === 'crop' ? 'brush' : 'crop')} />
    </fieldset>
    ${locked && html`<span class="hint">Clear the mask to crop.</span>`}
    <span class="spacer"></span>
    <button type="button" class="button quiet" onClick=${onRemove}>Remove image</button>
  </div>`;
}

function Canvas({ source, mask, size, mode, brush, onSource, onMask }) {
  const base = useRef();
  const overlay = useRef();
  const cursor = useRef();
  const points = useRef(null);
  const position = useRef([0.5, 0.5]);
  useEffect(() => {
    drawCrop(source, size, base.current);
  }, [source, ...size]);
  useEffect(() => {
    drawMask(mask, size, overlay.current);
  }, [mask, ...size]);

  const share = (event) => {
    const box = overlay.current.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };
  const showCursor = ([x, y]) => {
    position.current = [x, y];
    const { style } = cursor.current;
    style.left = `${x * 100}%`;
    style.top = `${y * 100}%`;
    style.width = `${brush * 100}%`;
  };
  useEffect(() => showCursor(position.current), [brush]);

  const onPointerDown = (event) => {
    if (event.button !== 0) return;
    overlay.current.setPointerCapture(event.pointerId);
    points.current = [share(event)];
    if (mode !== 'crop') draw(overlay.current.getContext('2d'), stroke(brush, mode === 'erase', points.current));
  };
  const onPointerMove = (event) => {
    const point = share(event);
    showCursor(point);
    if (points.current === null) return;
    const last = points.current.at(-1);
    points.current.push(point);
    if (mode === 'crop') onSource(moveCrop(source, size, point[0] - last[0], point[1] - last[1]));
    else draw(overlay.current.getContext('2d'), stroke(brush, mode === 'erase', [last, point]));
  };
  const onPointerUp = () => {
    const drawn = points.current;
    points.current = null;
    if (drawn && mode !== 'crop') onMask(add(mask, stroke(brush, mode === 'erase', drawn)));
  };
  const onKeyDown = (event) => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!move && event.key !== ' ') return;
    event.preventDefault();
    if (!move && mode !== 'crop') onMask(add(mask, stroke(brush, mode === 'erase', [position.current])));
    if (!move) return;
    if (mode === 'crop') onSource(moveCrop(source, size, -move[0] * KEY_STEP, -move[1] * KEY_STEP));
    else showCursor(position.current.map((each, axis) => Math.min(1, Math.max(0, each + move[axis] * KEY_STEP))));
  };
  return html`<div class="canvas-frame">
    <div class=${`canvas-stack mode-${mode}`}>
      <canvas ref=${base} width=${size[0]} height=${size[1]}></canvas>
      <canvas ref=${overlay} class="mask-overlay" tabindex="0" role="application"
        aria-label="Mask. Arrow keys move the brush, Space paints, [ and ] change its size, Ctrl+Z undoes."
        onPointerDown=${onPointerDown} onPointerMove=${onPointerMove} onPointerUp=${onPointerUp}
        onPointerCancel=${onPointerUp} onKeyDown=${onKeyDown} onFocus=${() => showCursor(position.current)}></canvas>
      <span ref=${cursor} class="brush-cursor" aria-hidden="true"></span>
    </div>
  </div>`;
}
