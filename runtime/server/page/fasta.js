// What a person pastes, as proteins; and where each of their characters stands in the text.

/** FASTA, or residues alone: `[{ name, characters, at }]`, `at` their offsets in the text. */
export function proteinsOf(text) {
  const proteins = [];
  let offset = 0;
  for (const line of text.split("\n")) {
    if (line.startsWith(">")) {
      proteins.push({ name: line.slice(1).trim(), characters: [], at: [] });
    } else {
      for (const found of line.matchAll(/\S/gu)) {
        if (!proteins.length) proteins.push({ name: "", characters: [], at: [] });
        proteins.at(-1).characters.push(found[0]);
        proteins.at(-1).at.push(offset + found.index);
      }
    }
    offset += line.length + 1;
  }
  proteins.forEach((each, i) => { each.name ||= `Protein ${i + 1}`; });
  return proteins;
}

/** What the server makes tokens of: `<mask>` is one, a last `*` none. */
export function residuesOf({ characters }) {
  const text = characters.join("").replace(/\*$/, "");
  return [...text.matchAll(/<\w+>|./gu)].map(([each]) => each.startsWith("<") ? each : each.toUpperCase());
}
