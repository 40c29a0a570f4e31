// The clips that come with a model, to choose one of: pictures that act as radio buttons.

import { get } from "./api.js";
import { draw, imageOf } from "./frames.js";
import { h } from "./ui.js";

const NO_CLIPS = "This model comes without clips to start from.";

/** Make the choice; `name` tells it from other views' choices. `onChoose(index)` hears of the first one too. */
export async function clipChoice(model, name, onChoose) {
  const { clips } = await get(`/v1/models/${encodeURIComponent(model.id)}/clips`, { quiet: true });
  const node = h("div", { className: "clips", role: "radiogroup", "aria-label": "Clips that come with the model" },
    clips.map((clip) => choiceOf(clip, name, onChoose)));
  if (clips.length === 0) node.replaceChildren(h("p", { className: "hint" }, NO_CLIPS));
  else await onChoose(clips[0].index);
  return node;
}

function choiceOf({ index, picture }, name, onChoose) {
  const canvas = h("canvas", { width: picture.width, height: picture.height, "aria-hidden": "true" });
  imageOf(picture).then((image) => draw(canvas, image));
  const choice = h("input", { type: "radio", name, value: index, checked: index === 0,
    onchange: () => onChoose(index) });
  return h("label", {}, choice, canvas, h("span", { className: "unseen" }, `Clip ${index}`));
}
