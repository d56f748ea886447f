// The mask as a list of operations, which can be undone, repeated and drawn at any size.

import { ApiError, readBlob } from './api.js';
import { createCanvas, readSource, sourceProblem, uploadOnce, uploadSource } from './image.js';

export const EMPTY_MASK = { operations: [], undone: [] };
const COLOUR = '#e5484d';

/** Coordinates and sizes are shares of the width and height of the image. */
export const stroke = (size, erase, points) => ({ kind: 'stroke', size, erase, points });
export const fill = () => ({ kind: 'fill' });
export const invert = () => ({ kind: 'invert' });
export const clear = () => ({ kind: 'clear' });

export function add(mask, operation) {
  return { operations: [...mask.operations, operation], undone: [] };
}

export function undo({ operations, undone }) {
  if (operations.length === 0) return { operations, undone };
  return { operations: operations.slice(0, -1), undone: [...undone, operations.at(-1)] };
}

export function redo({ operations, undone }) {
  if (undone.length === 0) return { operations, undone };
  return { operations: [...operations, undone.at(-1)], undone: undone.slice(0, -1) };
}

/** Draws the area to repaint, opaque on a transparent canvas of this size. */
export function drawMask(mask, [width, height], canvas) {
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext('2d', { willReadFrequently: true });
  mask.operations.forEach((operation) => draw(context, operation));
  return canvas;
}

export function draw(context, operation) {
  const { width, height } = context.canvas;
  context.save();
  context.fillStyle = context.strokeStyle = COLOUR;
  switch (operation.kind) {
    case 'stroke':
      drawStroke(context, operation, width, height);
      break;
    case 'invert':
      context.globalCompositeOperation = 'xor';
      context.fillRect(0, 0, width, height);
      break;
    case 'image':
      context.drawImage(operation.canvas, 0, 0, width, height);
      break;
    default:
      context.clearRect(0, 0, width, height);
      if (operation.kind === 'fill') context.fillRect(0, 0, width, height);
  }
  context.restore();
}

function drawStroke(context, { size, erase, points }, width, height) {
  context.globalCompositeOperation = erase ? 'destination-out' : 'source-over';
  context.lineCap = context.lineJoin = 'round';
  context.lineWidth = size * width;
  context.beginPath();
  points.forEach(([x, y]) => context.lineTo(x * width, y * height));
  // A line of one point is not drawn.
  if (points.length === 1) context.lineTo(points[0][0] * width + 0.01, points[0][1] * height);
  context.stroke();
}

/** The share of the image that the mask covers, from 0 to 1. */
export function coverage(mask) {
  if (mask.operations.length === 0) return 0;
  const canvas = drawMask(mask, [128, 128], createCanvas(1, 1));
  const { data } = canvas.getContext('2d').getImageData(0, 0, 128, 128);
  let covered = 0;
  for (let index = 3; index < data.length; index += 4) covered += data[index] >= 128 ? 1 : 0;
  return covered / (128 * 128);
}

/** The mask in white on black, as the service takes it. */
export function exportMask(mask, size) {
  const canvas = drawMask(mask, size, createCanvas(...size));
  const context = canvas.getContext('2d');
  context.globalCompositeOperation = 'source-in';
  context.fillStyle = '#fff';
  context.fillRect(0, 0, ...size);
  context.globalCompositeOperation = 'destination-over';
  context.fillStyle = '#000';
  context.fillRect(0, 0, ...size);
  return canvas;
}

const maskImageIds = new WeakMap();

async function uploadMask(mask, size) {
  const key = JSON.stringify(mask.operations, (name, value) =>
    name === 'canvas' ? (maskImageIds.get(value) ?? 0) : value,
  );
  return uploadOnce(`mask ${size} ${key}`, () => exportMask(mask, size), 'mask.png');
}

/** The inputs `image` and `mask` of a request: the URLs of the uploaded files. */
export async function uploadInputs(source, mask, size, config) {
  if (source === null) return {};
  const problem = source.ratio === 'original' && sourceProblem(source, config);
  if (problem) throw new ApiError(422, { title: problem, invalid_fields: [{ field: 'image', description: problem }] });
  const image = await uploadSource(source, size);
  return coverage(mask) === 0 ? { image } : { image, mask: await uploadMask(mask, size) };
}

/** A mask from an image in white on black. */
export async function readMask(blob, name) {
  const { canvas, id } = await readSource(blob, name);
  const context = canvas.getContext('2d');
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  const [red, green, blue] = [1, 3, 5].map((start) => Number.parseInt(COLOUR.slice(start, start + 2), 16));
  for (let index = 0; index < pixels.data.length; index += 4) {
    const white = (pixels.data[index] * pixels.data[index + 3]) / 255;
    pixels.data.set([red, green, blue, white], index);
  }
  context.putImageData(pixels, 0, 0);
  maskImageIds.set(canvas, id);
  return add(EMPTY_MASK, { kind: 'image', canvas });
}

export async function readMaskFrom(uri) {
  return readMask(await readBlob(uri), 'the mask');
}
