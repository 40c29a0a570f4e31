// The status strip: queue, latency, deadlines and cache, asked for every other second while somebody looks.

import { connection, get } from "./api.js";
import { h, quantity } from "./ui.js";

const EVERY_MS = 2000;
const WINDOW_MS = 60_000;

const held = [];

/** Fill the strip, and keep it up to date. */
export function showStatus(strip) {
  const values = new Map();
  const item = (name, title, hint) => {
    const value = h("dd", {}, "–");
    values.set(name, value);
    return h("div", { title: hint }, h("dt", {}, title), value);
  };
  strip.append(h("dl", {},
    item("server", "server", "Whether it answers"),
    item("queue", "queue", "Predicted work that waits"),
    item("busy", "device", "Share of the last seconds in the model"),
    item("p50", "p50", "Half of the requests for work were faster, last minute"),
    item("p99", "p99", "99 of 100 requests for work were faster, last minute"),
    item("missed", "deadlines missed", "Late or not answered, of all that had one, since the start"),
    item("cache", "cache", "Share of lookups that were found, since the start")));
  const update = () => refresh(strip, values);
  connection.addEventListener("change", update);
  document.addEventListener("visibilitychange", update);
  setInterval(update, EVERY_MS);
  update();
}

async function refresh(strip, values) {
  if (document.hidden) return;
  const status = connection.isUp ? await get("/v1/status", { quiet: true }).catch(() => null) : null;
  strip.dataset.state = connection.isUp ? "up" : "down";
  values.get("server").textContent = !connection.isUp ? "not answering" : status?.is_ready === false ? "starting"
      : "ready";
  if (status === null) return;
  remember(status);
  const { latency } = since(held[0], status);
  const { met, degraded, late, exceeded } = status.deadlines;
  const asked = met + degraded + late + exceeded;
  values.get("queue").textContent = quantity(status.queue_s * 1000, "ms");
  values.get("busy").textContent = quantity(Math.round(100 * status.busy_ratio), "%");
  values.get("p50").textContent = about(quantile(latency, 0.5));
  values.get("p99").textContent = about(quantile(latency, 0.99));
  values.get("missed").textContent = `${late + exceeded} of ${asked}`;
  values.get("cache").textContent = status.cache.lookups
    ? quantity(Math.round((100 * status.cache.hits) / status.cache.lookups), "%") : "unused";
}

function remember(status) {
  held.push({ at: performance.now(), latency: status.latency, requests: status.requests });
  if (held[0].requests > status.requests) held.splice(0, held.length - 1);  // another server, or it was started anew
  while (held.length > 1 && held[0].at < performance.now() - WINDOW_MS) held.shift();
}

/** The last minute's buckets, or all of them where the last minute had no request. */
function since(before, status) {
  const isQuiet = before.requests === status.requests;
  const counts = new Map(isQuiet ? [] : before.latency.map((bucket) => [bucket.at_most_s, bucket.count]));
  return { latency: status.latency.map((bucket) => [bucket.at_most_s,
      bucket.count - (counts.get(bucket.at_most_s) ?? 0)]) };
}

/** The quantile of cumulative buckets [[seconds, count]], between the borders of the one that it lies in. */
export function quantile(buckets, share) {
  const total = buckets.at(-1)?.[1] ?? 0;
  if (total === 0) return null;
  let [from, below] = [0, 0];
  for (const [to, count] of buckets) {
    if (count >= share * total)
      return to === null ? from : from + ((to - from) * (share * total - below)) / (count - below);
    [from, below] = [to, count];
  }
  return null;
}

const about = (seconds) => (seconds === null ? "–" : `≈ ${quantity(seconds * 1000, "ms", 2)}`);
