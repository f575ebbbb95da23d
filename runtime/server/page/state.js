// The server's live state: /info once for each artifact, /health/ready and /metrics every few seconds.

import { Refused, ask } from "./api.js";

const EVERY_MS = 3000;
const set = (id, text) => { document.getElementById(id).textContent = text; };
const number = (value) => Math.round(value).toLocaleString("en");

let info = null;
let sha = null;
let before = null;
let told = null;
let isClosed = false;

/** Watches the server. `told.artifact(info)` is called of each artifact, `told.closed()` without its token. */
export async function watch(who) {
  told = who;
  if (!document.hidden) await look();
  if (!isClosed) setTimeout(watch, EVERY_MS, who);
}

/** Asks now. */
export async function look() {
  try {
    await read();
  } catch (error) {
    isClosed = error.status === 401;
    if (isClosed) told.closed();
    say(error);
  }
}

async function read() {
  await ask("health/ready");
  health("ready", "Ready");
  const metrics = parsed(await ask("metrics", { as: "text" }));
  const serves = metrics.find(({ name }) => name === "esm2_engine_info")?.labels.manifest_sha256;
  if (!info || serves !== sha) {
    info = await ask("info");
    sha = serves;
    set("artifact", info.model_id);
    set("engine", `${info.engine} on ${info.device}, ${info.model_dtype}`);
    told.artifact(info);
  }
  show(metrics);
}

function show(metrics) {
  const now = performance.now();
  const total = (name, where = () => true) => metrics
    .filter((each) => each.name === name && where(each.labels))
    .reduce((sum, each) => sum + each.value, 0);
  const requests = (digits) => number(total("te_request_count_total",
    ({ method, status }) => info.tasks.includes(method) && digits.includes(status[0])));
  const tokens = total("esm2_tokens_total");
  set("waiting", `${number(total("esm2_queue_tokens"))} of ${number(info.max_queue_tokens)}`);
  set("requests", `${requests("2")} answered, ${requests("4")} refused, ${requests("5")} failed`);
  if (before && now - before.now < EVERY_MS / 2) return;  // too short for a rate
  if (before) set("rate", number(Math.max(0, 1000 * (tokens - before.tokens) / (now - before.now))));
  before = { tokens, now };
}

function say(error) {
  before = null;
  if (!(error instanceof Refused)) return health("away", "No answer from the server");
  if (isClosed) health("closed", "Ready for those who have the token");
  else health("busy", error.message);
}

function health(state, text) {
  const place = document.getElementById("health");
  if (place.textContent === text) return;  // a screen reader would say it again
  place.dataset.state = state;
  place.textContent = text;
}

/** Prometheus's text format: a sample a line. */
function parsed(text) {
  return [...text.matchAll(/^(\w+)(?:\{(.*)\})? (\S+)$/gm)].map(([, name, labels = "", value]) => ({
    name,
    labels: Object.fromEntries([...labels.matchAll(/(\w+)="((?:\\.|[^"\\])*)"/g)].map((m) => [m[1], m[2]])),
    value: Number(value),
  }));
}
