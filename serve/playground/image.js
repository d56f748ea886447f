// The input image: decoded, cropped to the size that the service will use, and uploaded.

import { readBlob, uploadFile } from './api.js';
import { inputImageSize } from './schema.js';

// Larger images are reduced when they are read; the service uses at most 1440 pixels.
const MAX_SIDE = 4096;
const uploads = new Map();
let sourceCount = 0;

export function createCanvas(width, height) {
  return Object.assign(document.createElement('canvas'), { width, height });
}

/** A source: the decoded image and how it is cropped. `ratio` is `original` or one of the config's sizes. */
export async function readSource(blob, name, url = null) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob);
  } catch {
    throw new Error(`${name} is not an image that this browser can read`);
  }
  const scale = Math.min(1, MAX_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = createCanvas(Math.round(bitmap.width * scale), Math.round(bitmap.height * scale));
  const context = canvas.getContext('2d');
  context.imageSmoothingQuality = 'high';
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  sourceCount += 1;
  return { id: sourceCount, canvas, name, url, ratio: 'original', zoom: 1, x: 0.5, y: 0.5 };
}

export async function readSourceFrom(uri, name) {
  return readSource(await readBlob(uri), name, uri.startsWith('data:') ? null : uri);
}

/** A problem with the image that the service would report, or null. */
export function sourceProblem({ canvas }, config) {
  const [shorter, longer] = [canvas.width, canvas.height].sort((one, other) => one - other);
  if (shorter < config.image_side_min)
    return `the image is ${canvas.width}×${canvas.height}; each side needs at least ${config.image_side_min} pixels`;
  if (longer > config.image_ratio_max * shorter)
    return `the image is ${canvas.width}×${canvas.height}; choose a crop that is less narrow`;
  return null;
}

/** The size that the plan will use. */
export function targetSize(source, megapixels, config) {
  const size = config.sizes[megapixels]?.[source.ratio];
  return size ?? inputImageSize([source.canvas.width, source.canvas.height], config);
}

/** The part of the source that is kept: x, y, width and height in its pixels. */
function cropRectangle({ canvas, zoom, x, y }, [width, height]) {
  const scale = Math.min(canvas.width / width, canvas.height / height) / zoom;
  const [cropWidth, cropHeight] = [width * scale, height * scale];
  return [x * (canvas.width - cropWidth), y * (canvas.height - cropHeight), cropWidth, cropHeight];
}

export function drawCrop(source, size, target) {
  [target.width, target.height] = size;
  const context = target.getContext('2d');
  context.imageSmoothingQuality = 'high';
  context.drawImage(source.canvas, ...cropRectangle(source, size), 0, 0, ...size);
  return target;
}

/** The source after its crop was dragged by a share of the target's width and height. */
export function moveCrop(source, size, shareX, shareY) {
  const [, , width, height] = cropRectangle(source, size);
  const move = (position, share, kept, side) =>
    side - kept < 1 ? position : Math.min(1, Math.max(0, position - (share * kept) / (side - kept)));
  return {
    ...source,
    x: move(source.x, shareX, width, source.canvas.width),
    y: move(source.y, shareY, height, source.canvas.height),
  };
}

function isWhole(source, [width, height]) {
  return source.zoom === 1 && source.canvas.width === width && source.canvas.height === height;
}

/** The URL of the cropped image. It is uploaded once. */
export async function uploadSource(source, size) {
  if (source.url !== null && isWhole(source, size)) return source.url;
  const key = `image ${source.id} ${source.ratio} ${source.zoom} ${source.x} ${source.y} ${size}`;
  return uploadOnce(key, () => drawCrop(source, size, createCanvas(...size)), 'image.png');
}

export async function uploadOnce(key, draw, name) {
  if (!uploads.has(key)) uploads.set(key, await uploadFile(await toBlob(draw()), name));
  return uploads.get(key);
}

/** Files may have been removed, so that the next request uploads them again. */
export function forgetUploads() {
  uploads.clear();
}

export function toBlob(canvas) {
  return new Promise((resolve) => canvas.toBlob(resolve, 'image/png'));
}
