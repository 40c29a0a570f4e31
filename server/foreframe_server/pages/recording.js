// A recording to predict from: a clip that comes with the model, or somebody's own video, pictures and states.

import { get } from "./api.js";
import { cameraClip, fit, imageOf, imageOfBlob } from "./frames.js";

const MAX_FRAMES = 240;

/** A file that cannot be read as what it should be; the message is for a person. */
export class FileFault extends Error {}

/** Frames in a model's size, and one row of states each. `note` says what was done to them on the way. */
export class Recording {
  /** states: {values, names?, units?}; pngs: the frames as they came, where they are such. */
  constructor({ name, frames, states, pngs = null, note = "" }) {
    Object.assign(this, { name, frames, states, pngs, note });
  }

  /** A part of it as a model takes it: context frames, the rows that follow and, where it was filmed, the truth. */
  window(model, start) {
    const split = start + model.context_frames;
    const end = split + model.horizon;
    const { values, ...written } = this.states;
    return {
      split,
      past: this.frames.slice(start, split),
      truth: this.frames.slice(split, end),
      pastStates: { ...written, values: values.slice(start, split) },
      futureStates: { ...written, values: values.slice(split, end) },
    };
  }

  /** The last frame at which a window can start that has at least one row to predict. */
  lastStart(model) {
    return Math.max(0, Math.min(this.frames.length - model.context_frames,
      this.states.values.length - model.context_frames - 1));
  }

  /** Frames as a request holds them. */
  clip(from, to) {
    return this.pngs ? { encoding: "png", frames: this.pngs.slice(from, to) } : cameraClip(this.frames.slice(from, to));
  }
}

/** Read one of the clips that come with a model. */
export async function readClip(model, index) {
  const clip = await get(`/v1/models/${encodeURIComponent(model.id)}/clips/${index}`);
  const frames = await Promise.all(clip.frames.map(imageOf));
  return new Recording({ name: `Clip ${index}`, frames, states: { values: clip.states },
    pngs: clip.frames.map((frame) => frame.data) });
}

/** Read a video or pictures as frames of a model's size, and say what was done to them. Throws FileFault. */
export async function readFrames(files, model) {
  const sorted = [...files].sort((one, other) => one.name.localeCompare(other.name, "en", { numeric: true }));
  const videos = sorted.filter((file) => file.type.startsWith("video/"));
  if (videos.length > 1 || (videos.length === 1 && sorted.length > 1))
    throw new FileFault("Choose one video, or pictures.");
  const { frames, note } = videos.length ? await framesOfVideo(videos[0], model)
      : await framesOfPictures(sorted, model);
  if (frames.length < model.context_frames) {
    throw new FileFault(`There are ${frames.length} frames; the model needs ${model.context_frames} to predict from.`);
  }
  return { frames, note };
}

async function framesOfPictures(files, { cameras: [camera] }) {
  const frames = [];
  let note = "";
  for (const file of files.slice(0, MAX_FRAMES)) {
    const image = await imageOfBlob(file).catch(() => {
      throw new FileFault(`${file.name} is not a picture that this browser can read.`);
    });
    const isRight = image.width === camera.width && image.height === camera.height;
    if (!isRight) note = `Fitted from ${image.width}×${image.height} into ${camera.width}×${camera.height}.`;
    frames.push(isRight ? image : fit(await createImageBitmap(image), camera.width, camera.height));
  }
  if (files.length > MAX_FRAMES) note += ` Only the first ${MAX_FRAMES} pictures are used.`;
  return { frames, note };
}

async function framesOfVideo(file, { cameras: [camera], fps }) {
  const video = Object.assign(document.createElement("video"), { muted: true, preload: "auto", playsInline: true });
  const address = URL.createObjectURL(file);
  try {
    await once(video, "loadeddata", () => (video.src = address));
    const count = Math.max(1, Math.round(video.duration * fps));
    const frames = [];
    for (let index = 0; index < Math.min(count, MAX_FRAMES); index += 1) {
      await once(video, "seeked", () => (video.currentTime = Math.min(video.duration, (index + 0.5) / fps)));
      frames.push(fit(video, camera.width, camera.height));
    }
    const cut = count > MAX_FRAMES ? `, only the first ${MAX_FRAMES}` : "";
    return { frames, note: `${frames.length} frames taken at ${fps} a second${cut}, fitted from ${video.videoWidth}×` +
      `${video.videoHeight} into ${camera.width}×${camera.height}.` };
  } finally {
    URL.revokeObjectURL(address);
  }
}

function once(video, event, act) {
  return new Promise((resolve, reject) => {
    video.addEventListener(event, resolve, { once: true });
    video.addEventListener("error",
        () => reject(new FileFault("This browser cannot play this video; pictures work everywhere.")),
      { once: true });
    act();
  });
}

/** Read rows of numbers from CSV (with a line of names or none) or JSON (rows, or {values, names?, units?}).
 *
 * What fits the model is the server's to say. Throws FileFault.
 */
export function readStates(text) {
  const trimmed = text.trim();
  if (!trimmed)
    throw new FileFault("There are no states yet: one row of numbers for every frame, and for every frame to predict.");
  return /^[[{]/.test(trimmed) ? statesOfJson(trimmed) : statesOfCsv(trimmed);
}

function statesOfJson(text) {
  let found;
  try {
    found = JSON.parse(text);
  } catch (error) {
    throw new FileFault(`This is not JSON: ${error.message}.`);
  }
  const { values, names, units } = Array.isArray(found) ? { values: found } : found;
  if (!Array.isArray(values) || !values.every(Array.isArray))
    throw new FileFault("JSON states are rows of numbers, or {values, names, units}.");
  return { values, ...(names && { names }), ...(units && { units }) };
}

function statesOfCsv(text) {
  const lines = text.split(/\r?\n/).filter((line) => line.trim());
  const rows = lines.map((line) => line.split(/[,;\t]/).map((cell) => cell.trim()));
  const hasNames = rows[0].every((cell) => cell && Number.isNaN(Number(cell)) && !/^[+-]?(nan|inf)/i.test(cell));
  const names = hasNames ? rows.shift() : null;
  const values = rows.map((row, at) => row.map((cell, column) => numberOf(cell, at + 1,
      names?.[column] ?? `column ${column + 1}`)));
  return { values, ...(names && { names }) };
}

function numberOf(cell, row, name) {
  const value = cell === "" ? Number.NaN : Number(cell);
  if (!Number.isFinite(value))
    throw new FileFault(`Row ${row}, ${name}: ${cell ? `"${cell.slice(0, 20)}" is not a number` : "is empty"}.`);
  return value;
}
