// Frames in a browser: from the wire to ImageData and onto a canvas, and what can be measured of them.

const MAX_RAW_PIXELS = 128 * 128;

/** The encoding in which a model's frames are soonest on the canvas: raw where they are small. */
export const bestEncoding = ({ width, height }) => (width * height <= MAX_RAW_PIXELS ? "raw" : "jpeg");

/** Bytes of base64 text. */
export function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let index = 0; index < text.length; index += 1) bytes[index] = text.charCodeAt(index);
  return bytes;
}

/** Base64 text of bytes. */
export function base64Of(bytes) {
  let text = "";
  for (let index = 0; index < bytes.length; index += 0x8000) {
    text += String.fromCharCode(...bytes.subarray(index, index + 0x8000));
  }
  return btoa(text);
}

/** The numbers of an array of the wire, from JSON or msgpack: {shape, values}. */
export function arrayOf({ dtype, shape, data }) {
  const bytes = typeof data === "string" ? bytesOf(data) : data.slice();
  const Kind = { "|u1": Uint8Array, "<f4": Float32Array, "<f8": Float64Array, "<i4": Int32Array }[dtype];
  return { shape, values: new Kind(bytes.buffer, bytes.byteOffset, bytes.byteLength / Kind.BYTES_PER_ELEMENT) };
}

/** ImageData of RGB bytes. */
export function fromRgb(bytes, width, height) {
  const image = new ImageData(width, height);
  for (let from = 0, to = 0; to < image.data.length; from += 3, to += 4) {
    image.data[to] = bytes[from];
    image.data[to + 1] = bytes[from + 1];
    image.data[to + 2] = bytes[from + 2];
    image.data[to + 3] = 255;
  }
  return image;
}

/** ImageData of one picture of the wire: an encoded one, or an array `h w 3`. */
export async function imageOf(picture) {
  if (picture.shape) {
    const [height, width] = picture.shape;
    return fromRgb(arrayOf(picture).values, width, height);
  }
  const bytes = typeof picture.data === "string" ? bytesOf(picture.data) : picture.data;
  return imageOfBlob(new Blob([bytes], { type: `image/${picture.encoding}` }));
}

/** ImageData of each frame of a prediction, a step or an event of progress. */
export const imagesOf = (frames) => Promise.all(frames.map((frame) => imageOf(frame.image)));

/** ImageData of each frame of each member; [] without members. */
export async function membersOf(members) {
  if (!members) return [];
  if (!members.shape) return Promise.all(members.map((member) => Promise.all(member.map(imageOf))));
  const [count, length, height, width] = members.shape;
  const { values } = arrayOf(members);
  const size = height * width * 3;
  return Array.from({ length: count }, (_, member) => Array.from({ length }, (_, frame) => {
    const start = (member * length + frame) * size;
    return fromRgb(values.subarray(start, start + size), width, height);
  }));
}

/** The variance map as one Float32Array a frame; [] without one. */
export function mapsOf(map) {
  if (!map) return [];
  const { shape: [count, height, width], values } = arrayOf(map);
  const size = height * width;
  return Array.from({ length: count }, (_, frame) => values.subarray(frame * size, (frame + 1) * size));
}

/** ImageData of a picture file, in its own size. */
export async function imageOfBlob(blob) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const surface = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d", { willReadFrequently: true });
  surface.drawImage(bitmap, 0, 0);
  return surface.getImageData(0, 0, bitmap.width, bitmap.height);
}

/** Scale a picture or a video's present frame to fit `width` x `height`, and fill up with black. */
export function fit(source, width, height) {
  const from = { width: source.videoWidth ?? source.width, height: source.videoHeight ?? source.height };
  const scale = Math.min(width / from.width, height / from.height);
  const size = { width: Math.round(from.width * scale), height: Math.round(from.height * scale) };
  const surface = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  surface.fillStyle = "black";
  surface.fillRect(0, 0, width, height);
  surface.imageSmoothingQuality = "high";
  surface.drawImage(source, (width - size.width) / 2, (height - size.height) / 2, size.width, size.height);
  return surface.getImageData(0, 0, width, height);
}

/** Base64 of an image's RGB bytes, as requests hold it with the encoding raw_rgb8; a canvas's own PNG has alpha. */
export function rgbOf({ data }) {
  const bytes = new Uint8Array((data.length / 4) * 3);
  for (let from = 0, to = 0; from < data.length; from += 4, to += 3) {
    bytes[to] = data[from];
    bytes[to + 1] = data[from + 1];
    bytes[to + 2] = data[from + 2];
  }
  return base64Of(bytes);
}

/** A camera's clip as requests hold it, of images. */
export const cameraClip = (images) => ({ encoding: "raw_rgb8", width: images[0].width, height: images[0].height,
  frames: images.map(rgbOf) });

/** Draw a frame, and over it a variance map with an opacity 0..1. The canvas takes the frame's size; CSS scales it. */
export function draw(canvas, image, { map = null, opacity = 0, most = 1 } = {}) {
  if (canvas.width !== image.width) canvas.width = image.width;
  if (canvas.height !== image.height) canvas.height = image.height;
  canvas.dataset.filled = "true";
  canvas.getContext("2d").putImageData(map && opacity > 0 ? warmed(image, map, opacity, most) : image, 0, 0);
}

/** Empty a canvas. */
export function clear(canvas) {
  delete canvas.dataset.filled;
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
}

const WARM = [255, 92, 40];

function warmed(image, map, opacity, most) {
  const made = new ImageData(new Uint8ClampedArray(image.data), image.width, image.height);
  for (let index = 0; index < map.length; index += 1) {
    const share = opacity * Math.min(1, map[index] / most) ** 0.6;
    for (let channel = 0; channel < 3; channel += 1) {
      const at = 4 * index + channel;
      made.data[at] = made.data[at] * (1 - share) + WARM[channel] * share;
    }
  }
  return made;
}

/** Root mean square difference of two frames over pixels and colours; white is 1. */
export function rmse(left, right) {
  let sum = 0;
  for (let index = 0; index < left.data.length; index += 1) {
    if (index % 4 < 3) sum += (left.data[index] - right.data[index]) ** 2;
  }
  return Math.sqrt(sum / (0.75 * left.data.length)) / 255;
}

/** Peak signal to noise of a root mean square difference, in dB. */
export const decibels = (difference) => -20 * Math.log10(Math.max(difference, 1e-6));
