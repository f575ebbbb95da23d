// The page: what is pasted goes to the server, what it answers is drawn.

import { Refused, ask, hasToken, keepToken } from "./api.js";
import { Charts, element } from "./chart.js";
import { proteinsOf, residuesOf } from "./fasta.js";
import {
  boundOf, contactFigure, embeddingFigure, entropyFigure, likeliestPairs, residueFigure,
} from "./figures.js";
import { look, watch } from "./state.js";

const MOST_SHOWN = 4;
// A map in JSON takes about 12 bytes a pair of residues.
const MOST_MAPPED = 1000;
const AROUND = 12;
const UBIQUITIN = ">Ubiquitin, human\n"
  + "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG\n";

const $ = (id) => document.getElementById(id);
const charts = new Charts($("results"));
let info = null;
let asking = null;

watch({
  artifact(found) {
    info = found;
    $("synthetic").hidden = !info.synthetic;
    $("access").hidden = true;
  },
  closed: askForToken,
});

function askForToken() {
  if (hasToken()) $("kept").textContent = "The one that you gave is not this server's.";
  $("access").hidden = false;
}

$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  keepToken($("token").value);
  location.reload();
});
$("example").addEventListener("click", () => {
  $("text").value = UBIQUITIN;
  run();
});
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
});

async function run() {
  asking?.abort();  // the server drops what nobody waits for
  asking = new AbortController();
  const { signal } = asking;
  const all = proteinsOf($("text").value);
  const proteins = all.slice(0, MOST_SHOWN);
  complain();
  if (!proteins.length) return complain("Paste a protein first: its residues, in one-letter codes.");
  $("results").ariaBusy = "true";
  $("progress").textContent = "Computing…";
  try {
    info ??= await ask("info", { signal });
    const began = performance.now();
    const found = await answers(proteins, signal);
    show(proteins, found);
    const more = all.length > MOST_SHOWN ? ` The first ${MOST_SHOWN} of ${all.length} are shown.` : "";
    $("progress").textContent = `Done in ${((performance.now() - began) / 1000).toFixed(2)} s.${more}`;
  } catch (error) {
    if (error.name === "AbortError") return;
    $("progress").textContent = "";
    charts.clear();
    $("results").replaceChildren();
    if (error.status === 401) askForToken();
    explain(error, proteins);
  }
  $("results").ariaBusy = "false";
  look();
}

/** Of each protein: `{ vectors, logits, maps, predictions }`, where the artifact offers them. */
async function answers(proteins, signal) {
  const offers = (task) => info.tasks.includes(task);
  const post = (path, of) => ask(path, {
    signal,
    body: { inputs: of.map(({ characters }) => characters.join("")), upper: true, strip_stop: true },
  });
  const mapped = proteins.filter((each) => residuesOf(each).length <= MOST_MAPPED);
  const vectors = await post("embed", proteins);  // alone: what is wrong is refused once
  const [logits, maps, predictions] = await Promise.all([
    offers("/logits") ? post("logits", proteins) : null,
    offers("/contacts") && mapped.length ? post("contacts", mapped) : null,
    offers("/predict") ? post("predict", proteins) : null,
  ]);
  return { vectors, logits, maps: maps && new Map(mapped.map((each, i) => [each, maps[i]])), predictions };
}

function show(proteins, { vectors, logits, maps, predictions }) {
  charts.clear();
  const bound = boundOf(vectors);
  $("results").replaceChildren(...proteins.map((protein, i) => {
    const residues = residuesOf(protein);
    const map = maps?.get(protein);
    const isLong = info.tasks.includes("/contacts") && !map;
    return element("article", {},
      element("h2", { textContent: protein.name }),
      element("p", {
        className: "hint",
        textContent: `${residues.length.toLocaleString("en")} ${residues.length === 1 ? "residue" : "residues"}`
          + (isLong ? `. Contacts are drawn up to ${MOST_MAPPED.toLocaleString("en")}: ask POST /contacts for more.` : ""),
      }),
      predictions && labels(predictions[i], residues),
      embeddingFigure(charts, vectors[i], bound),
      logits && entropyFigure(charts, residues, logits[i]),
      map && element("div", { className: "beside" }, contactFigure(charts, residues, map), pairs(map, residues)));
  }));
  charts.paint();
}

function labels(scores, residues) {
  if (Array.isArray(scores[0])) {
    const best = scores.map((each) => each[0]);
    return residueFigure(charts, residues, {
      title: "Labels of residues",
      note: "The score of the likeliest label at each residue; its name when pointed at.",
      label: `${best.length} residues`,
      values: best.map(({ score }) => score),
      most: Math.max(1, ...best.map(({ score }) => score)),
      describe: (i) => scores[i].slice(0, 3).map(({ label, score }) => `${label} ${score.toFixed(3)}`).join(", "),
    });
  }
  const rows = scores.slice(0, 10).map(({ label, score }) => [label, score.toFixed(3)]);
  return element("div", { className: "labels" }, table("Labels of its head", ["label", "score"], rows));
}

function pairs(map, residues) {
  const name = (i) => `${residues[i]} ${i + 1}`;
  const rows = likeliestPairs(map, 10, 6).map(([i, j, share]) => [`${name(i)} – ${name(j)}`, share.toFixed(3)]);
  if (!rows.length) return null;
  return element("div", {}, table("Likeliest, 6 or more apart", ["residues", "probability"], rows));
}

function table(title, heads, rows) {
  const cells = (kind, texts) => element("tr", {},
    ...texts.map((text, i) => element(kind, { textContent: text, className: i ? "number" : "" })));
  return element("table", {}, element("caption", { textContent: title }),
    element("thead", {}, cells("th", heads)), element("tbody", {}, ...rows.map((row) => cells("td", row))));
}

// --- what is wrong ---------------------------------------------------------------------------------

function complain(...what) {
  $("problem").replaceChildren(...what);
  $("problem").hidden = !what.length;
  $("text").ariaInvalid = what.length ? "true" : "false";
}

/** One sentence; and where a character is wrong, it is marked, and selected in what was pasted. */
function explain(error, proteins) {
  if (!(error instanceof Refused)) {
    if (!(error instanceof TypeError)) throw error;
    return complain("The server does not answer.");
  }
  const [first] = error.details;
  const protein = proteins[first?.record];
  if (error.status !== 422 || !protein) return complain(error.message);
  const sentence = `${protein.name}: ${first.reason}.`;
  if (first.position === undefined) return complain(sentence);
  const place = first.position - 1;
  const { characters, at } = protein;
  complain(sentence, element("code", {},
    place > AROUND ? "…" : "", characters.slice(Math.max(0, place - AROUND), place).join(""),
    element("mark", { textContent: characters[place] }),
    characters.slice(place + 1, place + 1 + AROUND).join(""), place + 1 + AROUND < characters.length ? "…" : ""));
  $("text").focus();
  $("text").setSelectionRange(at[place], at[place] + characters[place].length);
}
