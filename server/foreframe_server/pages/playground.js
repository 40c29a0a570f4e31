// Playground: a clip or somebody's own recording in; past, prediction, truth, spread and bits out, as they arrive.

import { Unreachable, connection, get, post, stream } from "./api.js";
import { verdictText } from "./calibration.js";
import { bestEncoding, imageOf, imagesOf, mapsOf, membersOf, draw } from "./frames.js";
import { FileFault, Recording, readClip, readFrames, readStates } from "./recording.js";
import { Stage } from "./stage.js";
import { alertPlace, announce, button, clearRefusals, field, h, input, numberIn, say, select, showRefusal,
    textarea } from "./ui.js";

/** Fill the panel. */
export async function mount(panel, context) {
  const page = new Playground(panel, context);
  await page.listClips();
}

/** A first look may not keep a machine from its robots: it is given up where it takes longer. */
const GLANCE_MS = 3000;

class Playground {
  recording = null;
  busy = null;
  #glance = null;

  constructor(panel, { model }) {
    this.model = model;
    this.stage = new Stage(model);
    this.refusals = alertPlace();
    this.form = h("form", { className: "asking", noValidate: true }, this.#source(), this.#settings(),
      this.refusals, this.#buttons());
    this.form.addEventListener("submit", (event) => (event.preventDefault(), this.predict()));
    this.stage.onMedoid = () => this.#fetchMedoid();
    panel.append(h("div", { className: "split pictures-first" }, this.form, this.stage.node));
    panel.addEventListener("drop", (event) => this.#drop(event));
  }

  #source() {
    this.clips = h("div", { className: "clips", role: "radiogroup", "aria-label": "Clips that come with the model" });
    this.files = h("input", { type: "file", name: "frames", multiple: true,
      accept: "video/*,image/png,image/jpeg,image/webp,.csv,.json,.txt",
      onchange: () => this.#readFiles() });
    this.states = textarea("states", { rows: 4, spellcheck: false, placeholder: "0.01, 0.20, …  one row a frame",
      onchange: () => this.#readOwn() });
    this.start = input("start", { type: "range", min: 0, max: 0, value: 0, oninput: () => this.#showPast(),
      onchange: () => this.recording?.pngs && this.#look() });
    this.startField = field("Window starts at frame", this.start, { wide: true });
    this.startField.hidden = true;
    const camera = this.model.cameras[0].name;
    this.own = h("details", { className: "own" }, h("summary", {}, "Your own recording"),
      field("Video or pictures", this.files, { wide: true,
        pointers: ["/observation/cameras", `/observation/cameras/${camera}`],
        hint: `At least ${this.model.context_frames} frames, ${this.model.fps} a second; ` +
          "files may be dropped anywhere here" }),
      field("States, CSV or JSON", this.states, { wide: true,
        pointers: ["/observation/state", "/future", "/target/state"],
        hint: `${this.model.state_dim} numbers a row, ${this.model.state_schema}; ` +
          "rows after the last frame are what the robot would do" }),
      this.startField);
    return h("fieldset", {}, h("legend", {}, "Start from"), this.clips, this.own);
  }

  #settings() {
    const { sampler } = this.model;
    this.members = input("members", { type: "number", min: 1, max: sampler.max_ensemble_size,
      value: Math.min(8, sampler.max_ensemble_size) });
    this.steps = input("steps", { type: "number", min: 1, max: sampler.max_steps, placeholder: String(sampler.steps) });
    this.seed = input("seed", { type: "number", min: 0, placeholder: "drawn" });
    this.deadline = input("deadline", { type: "number", min: 5, placeholder: "none" });
    this.strategy = select("strategy", [["sample", "Sample members"], ["posterior_mean", "Posterior mean, one pass"]],
      { onchange: () => this.#fitStrategy() });
    this.cache = select("cache", [["use", "Use the cache"], ["bypass", "Compute anew"]]);
    this.#fitStrategy();
    const fields = h("div", { className: "grid" },
      field("Strategy", this.strategy, { pointers: ["/sampling/strategy"], wide: true }),
      field("Members", this.members, { pointers: ["/ensemble", "/ensemble/size"] }),
      field("Steps", this.steps, { pointers: ["/sampling/steps"] }),
      field("Deadline, ms", this.deadline, { pointers: ["/deadline_ms", "/on_deadline"] }),
      field("Seed", this.seed, { pointers: ["/sampling/seed"] }),
      field("Results", this.cache, { pointers: ["/cache"], wide: true }));
    const isRoomy = matchMedia("(min-width: 60rem)").matches;
    return h("details", { className: "settings", open: isRoomy }, h("summary", {}, "Settings"), fields);
  }

  #buttons() {
    this.go = h("button", { type: "submit", className: "first" }, "Predict");
    this.stop = button("Stop", () => this.busy?.abort(), { hidden: true });
    return h("div", { className: "actions" }, this.go, this.stop);
  }

  #fitStrategy() {
    const isMean = this.strategy.value === "posterior_mean";
    this.members.disabled = this.steps.disabled = isMean;
  }

  /** Show the clips that come with the model and choose the first. */
  async listClips() {
    const clips = await this.#askForClips();
    this.own.open = clips.length === 0;
    this.clips.hidden = clips.length === 0;
    this.clips.replaceChildren(...clips.map((clip) => this.#clipChoice(clip)));
    if (clips.length > 0) await this.#chooseClip(0);
  }

  async #askForClips() {
    try {
      return (await get(`/v1/models/${encodeURIComponent(this.model.id)}/clips`, { quiet: true })).clips;
    } catch (error) {
      showRefusal(this.form, this.refusals, error);
      return [];
    }
  }

  #clipChoice({ index, picture }) {
    const canvas = h("canvas", { width: picture.width, height: picture.height, "aria-hidden": "true" });
    imageOf(picture).then((image) => draw(canvas, image));
    const choice = h("input", { type: "radio", name: "clip", value: index, checked: index === 0,
        onchange: () => this.#chooseClip(index) });
    return h("label", {}, choice, canvas, h("span", { className: "unseen" }, `Clip ${index}`));
  }

  async #chooseClip(index) {
    clearRefusals(this.form, this.refusals);
    try {
      this.#use(await readClip(this.model, index));
    } catch (error) {
      showRefusal(this.form, this.refusals, error);
      return;
    }
    this.#look();
  }

  /** Show what one pass says of a clip before anybody asks; the same for all, so the cache has it soon. */
  async #look() {
    const glance = (this.#glance = new AbortController());
    const { signal } = glance;
    const { deadline_ms: _, ...asked } = this.#request("posterior_mean");
    const request = { ...asked, sampling: { strategy: "posterior_mean", seed: 0 }, cache: "use", priority: "bulk" };
    setTimeout(() => glance.abort(), GLANCE_MS);
    try {
      const frames = await imagesOf((await post("/v1/predictions", request, { signal })).frames);
      signal.throwIfAborted();
      this.stage.update(frames, [], "One pass: the mean of all futures. Predict draws members.");
    } catch (error) {
      if (error.name !== "AbortError") this.stage.tell(error.message);
    }
  }

  #drop(event) {
    const files = [...event.dataTransfer.files];
    if (files.length === 0) return;
    this.own.open = true;
    const texts = files.filter((file) => /\.(csv|json|txt)$/i.test(file.name));
    this.#take(files.filter((file) => !texts.includes(file)), texts[0]);
  }

  async #take(pictures, text) {
    if (text) {
      this.states.value = await text.text();
      this.states.dispatchEvent(new Event("input"));
    }
    if (pictures.length > 0) {
      const held = new DataTransfer();
      for (const file of pictures) held.items.add(file);
      this.files.files = held.files;
      await this.#readFiles();
    } else await this.#readOwn();
  }

  async #readFiles() {
    const files = [...this.files.files];
    const texts = files.filter((file) => /\.(csv|json|txt)$/i.test(file.name));
    if (texts.length > 0) return this.#take(files.filter((file) => !texts.includes(file)), texts[0]);
    clearRefusals(this.form, this.refusals);
    this.filmed = null;
    try {
      this.filmed = files.length === 0 ? null : await readFrames(files, this.model);
    } catch (error) {
      this.recording = null;
      say(this.files, error instanceof FileFault ? error.message : "These files could not be read.");
      return undefined;
    }
    return this.#readOwn();
  }

  async #readOwn() {
    clearRefusals(this.form, this.refusals);
    if (!this.states.value.trim()) return;
    try {
      const states = readStates(this.states.value);
      if (!this.filmed) {
        say(this.files, "These states need their video or pictures. Until then the clip is predicted.");
        return;
      }
      for (const choice of this.clips.querySelectorAll("input")) choice.checked = false;
      this.#use(new Recording({ name: "Your recording", ...this.filmed, states }));
    } catch (error) {
      if (this.filmed) this.recording = null;
      say(this.states, error.message);
    }
  }

  #use(recording) {
    this.#abort();
    this.recording = recording;
    const last = recording.lastStart(this.model);
    this.start.max = String(last);
    if (Number(this.start.value) > last) this.start.value = "0";
    this.startField.hidden = last === 0;
    this.#showPast();
  }

  #abort() {
    this.busy?.abort();
    this.#glance?.abort();
  }

  #showPast() {
    this.#glance?.abort();
    this.startField.querySelector("label").textContent = `Window starts at frame ${this.start.value}`;
    this.window = this.recording.window(this.model, Number(this.start.value));
    this.stage.open(this.window, this.recording);
  }

  /** Ask for the future of the window; what is refused is told beside its field, a lost server is waited for. */
  async predict() {
    clearRefusals(this.form, this.refusals);
    if (this.own.open && !this.filmed) this.#readOwn();
    if (!this.#hasWindow()) return;
    this.#abort();
    const stop = new AbortController();
    this.busy = stop;
    this.#showBusy(true);
    this.stage.reveal();
    try {
      await this.#predictPatiently(this.#request(this.strategy.value), stop.signal);
    } catch (error) {
      const isStopped = error.name === "AbortError";
      if (!isStopped) showRefusal(this.form, this.refusals, error);
      if (this.busy === stop) this.stage.stop(isStopped ? "Stopped." : "");
    } finally {
      if (this.busy === stop) {
        this.busy = null;
        this.#showBusy(false);
      }
    }
  }

  async #predictPatiently(request, signal) {
    for (;;) {
      try {
        return await this.#ask(request, signal);
      } catch (error) {
        if (!(error instanceof Unreachable)) throw error;
        this.stage.tell("Lost the server. This is asked again as soon as it answers.");
        await connection.untilUp(signal);
      }
    }
  }

  async #ask(request, signal) {
    this.stage.begin(this.window);
    const answer = await stream("/v1/predictions", request, (name, event) => this.#hear(name, event), { signal });
    this.asked = { request, seed: answer.seed };
    await this.stage.finish(answer, { frames: await imagesOf(answer.frames), members: await membersOf(answer.members),
      maps: mapsOf(answer.uncertainty.map) });
    announce(`Predicted ${answer.frames.length} frames from ${answer.ensemble.members} members. ` +
      `Verdict: ${verdictText(answer.uncertainty)}.`);
    await this.#count(signal);
  }

  async #hear(name, event) {
    if (name === "accepted") this.stage.progress(0, event.requested, `seed ${event.seed}, ${event.steps} steps`);
    if (name === "estimate") this.stage.update(await imagesOf(event.frames), [], "First estimate");
    if (name === "update") {
      this.stage.progress(event.members, null, "");
      this.stage.update(await imagesOf(event.frames), event.spread_per_frame, null);
    }
  }

  /** Ask how many bits what really happened costs; a model without tokens is not asked. */
  async #count(signal) {
    const { split, truth, futureStates } = this.window;
    const count = Math.min(truth.length, futureStates.values.length);
    if (!this.model.capabilities.includes("likelihood") || count === 0) return;
    const state = { ...futureStates, values: futureStates.values.slice(0, count) };
    const reply = await post("/v1/likelihoods", { model: this.model.id, observation: this.#observation(),
      target: { ...this.recording.clip(split, split + count), state } }, { signal });
    this.stage.showBits(reply);
  }

  async #fetchMedoid() {
    const { request, seed } = this.asked;
    const reply = await post("/v1/predictions", { ...request, sampling: { ...request.sampling, seed },
      ensemble: { ...request.ensemble, reducer: "medoid" }, cache: "use",
          return: { encoding: request.return.encoding, variance: "none" } });
    return imagesOf(reply.frames);
  }

  /** Whether there is something to predict from; says beside its field what is missing. */
  #hasWindow() {
    if (this.recording && this.window.futureStates.values.length > 0) return true;
    this.own.open = true;
    if (this.recording)
      say(this.states, `There are no rows after those of the ${this.model.context_frames} context frames.`);
    else if (!this.filmed) say(this.files, "Choose a video or pictures first.");
    else if (!this.states.value.trim())
      say(this.states, "States are needed: one row of numbers for every frame, and for every frame to predict.");
    else this.#readOwn();
    return false;
  }

  #observation() {
    const { split, pastStates } = this.window;
    const clip = this.recording.clip(split - this.model.context_frames, split);
    return { cameras: { [this.model.cameras[0].name]: clip }, state: pastStates };
  }

  #request(strategy) {
    const isMean = strategy === "posterior_mean";
    const [steps, seed, deadline] = [this.steps, this.seed, this.deadline].map(numberIn);
    return {
      model: this.model.id,
      observation: this.#observation(),
      future: { kind: "state", values: this.window.futureStates.values },
      ...(!isMean && { ensemble: { size: numberIn(this.members) ?? 1 } }),
      sampling: { strategy, ...(steps !== null && !isMean && { steps }),
          ...(seed !== null && { seed }) },
      ...(deadline !== null && { deadline_ms: deadline }),
      return: { encoding: bestEncoding(this.model.cameras[0]), variance: isMean ? "none" : "map", members: !isMean },
      cache: this.cache.value,
    };
  }

  #showBusy(isBusy) {
    this.stop.hidden = !isBusy;
    this.go.textContent = isBusy ? "Predict again" : "Predict";
    this.form.setAttribute("aria-busy", String(isBusy));
  }
}
