// The three pictures of a protein.

import { css, element, inGrid, legend, scaleOf, style } from "./chart.js";

const MOST_BITS = Math.log2(20);
const AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY";  // columns of /logits
const MONO = () => style("--mono");
const percent = (value) => `${(100 * value).toFixed(value < 0.1 ? 1 : 0)} %`;

/** The bound of a scale around 0 that a few outliers, of which ESM-2 has some, do not wash out. */
export function boundOf(vectors) {
  const sizes = vectors.flat().map(Math.abs).sort((a, b) => a - b);
  return sizes[Math.floor(0.98 * (sizes.length - 1))] || 1;
}

/** A vector as a strip of cells, in as many rows as it needs. */
export function embeddingFigure(charts, vector, bound) {
  const end = bound.toPrecision(2);
  return charts.figure({
    title: "Embedding",
    note: `The mean of the last layer over residues: ${vector.length} numbers, row by row. `
      + "One scale for all proteins here; beyond its ends 2 % of the numbers.",
    label: `${vector.length} numbers, ${Math.min(...vector).toFixed(2)} to ${Math.max(...vector).toFixed(2)}`,
    key: legend("--diverging", `−${end}`, `+${end}`),
    describe: (cell) => `dimension ${cell} · ${vector[cell].toFixed(4)}`,
    layout(width) {
      const rows = Math.ceil(vector.length / Math.floor(width / 5));
      const columns = Math.ceil(vector.length / rows);
      const wide = width / columns;
      const high = Math.max(16, Math.round(64 / rows));
      return {
        width,
        height: rows * high,
        paint(context) {
          const colour = scaleOf("--diverging");
          vector.forEach((value, i) => {
            context.fillStyle = css(colour(0.5 + value / bound / 2));
            const left = Math.round(i % columns * wide);
            context.fillRect(left, Math.floor(i / columns) * high,
              Math.round((i % columns + 1) * wide) - left, high - 1);
          });
        },
        at(x, y) {
          const cell = Math.floor(y / high) * columns + Math.min(columns - 1, Math.floor(x / wide));
          return cell < vector.length ? cell : -1;
        },
        box: (cell) => [cell % columns * wide, Math.floor(cell / columns) * high, wide, high - 1],
        step: (cell, step) => inGrid(cell, step, columns, vector.length),
      };
    },
  });
}

/** Probabilities over the 20 amino acids alone, of log-probabilities over all tokens. */
export function probabilities(logs) {
  const most = Math.max(...logs);
  const sizes = logs.map((each) => Math.exp(each - most));
  const sum = sizes.reduce((a, b) => a + b);
  return sizes.map((each) => each / sum);
}

/** In bits, 0 to log2(20). */
export function entropy(shares) {
  return -shares.reduce((sum, each) => sum + (each > 0 ? each * Math.log2(each) : 0), 0);
}

/** Uncertainty of the model at each residue. */
export function entropyFigure(charts, residues, logits) {
  const shares = logits.map(probabilities);
  const bits = shares.map(entropy);
  const mean = bits.reduce((a, b) => a + b) / bits.length;
  return residueFigure(charts, residues, {
    title: "Entropy, bits",
    note: "How open each place is to the model, which sees all residues: 0 where it takes one amino acid for "
      + `certain, ${MOST_BITS.toFixed(2)} where all 20 are equally likely.`,
    key: { node: element("span", { className: "legend", textContent: `mean ${mean.toFixed(2)}` }), paint() {} },
    label: `${bits.length} residues, mean ${mean.toFixed(2)} bits`,
    values: bits,
    most: MOST_BITS,
    describe: (i) => `${bits[i].toFixed(2)} bits · ${likeliest(shares[i])}`,
  });
}

function likeliest(shares) {
  const order = [...shares.keys()].sort((a, b) => shares[b] - shares[a]).slice(0, 3);
  return order.map((i) => `${AMINO_ACIDS[i]} ${percent(shares[i])}`).join(", ");
}

/** A bar above each residue, in lines as sequences are printed. */
export function residueFigure(charts, residues, { title, note, label, key, values, most, describe }) {
  const count = values.length;
  const gutter = 32, edge = 8, bar = 40, letter = 18, number = 12, gap = 14;
  const line = bar + letter + number + gap;
  return charts.figure({
    title, note, label, key,
    describe: (i) => `${residues[i]} ${i + 1} · ${describe(i)}`,
    layout(width) {
      const room = Math.floor((width - gutter - edge) / 10.5);
      const columns = Math.max(10, room - room % 10);
      const wide = (width - gutter - edge) / columns;
      const top = (i) => 8 + Math.floor(i / columns) * line;
      const left = (i) => gutter + i % columns * wide;
      return {
        width,
        height: 8 + Math.ceil(count / columns) * line,
        paint(context) {
          const [ink, soft, grid, accent] = ["--ink", "--soft", "--line", "--accent"].map(style);
          context.textBaseline = "middle";
          for (let start = 0; start < count; start += columns) {
            const y = top(start);
            const end = gutter + wide * Math.min(columns, count - start);
            context.fillStyle = grid;
            for (const height of [0, bar / 2, bar]) context.fillRect(gutter, Math.round(y + height), end - gutter, 1);
            context.fillStyle = soft;
            context.font = `11px ${MONO()}`;
            context.textAlign = "right";
            context.fillText(most.toFixed(1), gutter - 6, y);
            context.fillText("0", gutter - 6, y + bar);
            context.textAlign = "left";
          }
          context.font = `${Math.min(13, wide * 1.25)}px ${MONO()}`;
          context.textAlign = "center";
          values.forEach((value, i) => {
            const height = Math.max(1, bar * Math.min(1, Math.max(0, value / most)));
            context.fillStyle = accent;
            context.fillRect(left(i) + 1, top(i) + bar - height, wide - 2, height);
            context.fillStyle = ink;
            context.fillText(residues[i].length === 1 ? residues[i] : "?", left(i) + wide / 2, top(i) + bar + letter / 2 + 2);
          });
          context.font = `10px ${MONO()}`;
          context.fillStyle = soft;
          for (let i = 9; i < count; i += 10) {
            context.fillText(i + 1, left(i) + wide / 2, top(i) + bar + letter + number / 2);
          }
        },
        at(x, y) {
          const column = Math.floor((x - gutter) / wide);
          const cell = Math.floor((y - 8) / line) * columns + column;
          return column >= 0 && column < columns && cell >= 0 && cell < count ? cell : -1;
        },
        box: (i) => [left(i), top(i), wide, bar + letter],
        step: (i, step) => inGrid(i, step, columns, count),
      };
    },
  });
}

/** Probabilities that residues touch. */
export function contactFigure(charts, residues, map) {
  const count = map.length;
  const gutter = 40, edge = 14, below = 36;
  return charts.figure({
    title: "Contacts",
    note: "The probability that two residues touch: Cβ atoms less than 8 Å apart.",
    label: `Map of ${count} by ${count} residues; the likeliest pairs stand in the table`,
    key: legend("--sequential", "0", "1"),
    describe(cell) {
      const [i, j] = [Math.floor(cell / count), cell % count];
      return `${residues[i]} ${i + 1} – ${residues[j]} ${j + 1} · ${map[i][j].toFixed(3)}`;
    },
    layout(width) {
      const size = Math.min(width - gutter - edge, 480);
      const cell = size / count;
      return {
        width: size + gutter + edge,
        height: size + below,
        paint(context) {
          context.imageSmoothingEnabled = cell < 1;
          context.drawImage(picture(map), gutter, 0, size, size);
          context.strokeStyle = style("--soft");
          context.strokeRect(gutter - 0.5, 0.5, size + 1, size);
          context.fillStyle = style("--soft");
          context.font = `11px ${MONO()}`;
          for (const number of ticks(count)) {
            const middle = (number - 0.5) * cell;
            context.fillRect(gutter + middle, size, 1, 4);
            context.fillRect(gutter - 4, middle, 4, 1);
            context.textAlign = "center";
            context.textBaseline = "top";
            context.fillText(number, gutter + middle, size + 6);
            context.textAlign = "right";
            context.textBaseline = "middle";
            context.fillText(number, gutter - 6, Math.max(6, middle));
          }
          context.textAlign = "center";
          context.textBaseline = "bottom";
          context.fillText("residue", gutter + size / 2, size + below);
        },
        at(x, y) {
          const [i, j] = [Math.floor(y / cell), Math.floor((x - gutter) / cell)];
          return i >= 0 && i < count && j >= 0 && j < count ? i * count + j : -1;
        },
        box: (at) => [gutter + at % count * cell, Math.floor(at / count) * cell, cell, cell],
        step: (at, step) => inGrid(at, step, count, count * count),
      };
    },
  });
}

function picture(map) {
  const colour = scaleOf("--sequential");
  const colours = Array.from({ length: 256 }, (_, i) => [...colour(i / 255), 255]);
  const image = new ImageData(map.length, map.length);
  map.flat().forEach((value, i) => image.data.set(colours[Math.round(255 * value)], 4 * i));
  const shown = new OffscreenCanvas(map.length, map.length);
  shown.getContext("2d").putImageData(image, 0, 0);
  return shown;
}

/** 1, and some six round numbers up to `count`. */
function ticks(count) {
  const step = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((each) => count / each <= 7) ?? 2000;
  const round = Array.from({ length: Math.floor(count / step) }, (_, i) => (i + 1) * step);
  return step > 2 ? [1, ...round] : round;
}

/** Pairs at least `apart` residues from one another, likeliest first: `[i, j, probability]`. */
export function likeliestPairs(map, most, apart) {
  const pairs = [];
  map.forEach((row, i) => row.forEach((value, j) => { if (j - i >= apart) pairs.push([i, j, value]); }));
  return pairs.sort((a, b) => b[2] - a[2]).slice(0, most);
}
