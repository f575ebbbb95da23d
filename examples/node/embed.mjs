// Embeds the proteins of a FASTA file as one pack: node embed.mjs ARTIFACT PROTEINS.fasta OUT_FOLDER
//
// Writes embeddings.npy, the mean over each protein's residues in the last exported layer, and every
// output of the engine under its own name. Exit status 2: something given is unfit; 1: the run failed.

import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

// The order that the embedding table was trained with; see runtime/tokenizer.py.
const TOKENS = [
  "<cls>", "<pad>", "<eos>", "<unk>", ..."LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>",
];
const CLS = 0, PAD = 1, EOS = 2;

class UserError extends Error {}

function readText(path) {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    throw new UserError(`cannot read ${path}: ${error.message}`);
  }
}

/** [{name, sequence}] */
function readFasta(path) {
  const records = [];
  for (const line of readText(path).split(/\r?\n/).map((line) => line.trimEnd())) {
    if (line === "") continue;
    if (line.startsWith(">")) records.push({ name: line.slice(1).split(/\s/)[0], sequence: "" });
    else if (records.length) records.at(-1).sequence += line;
    else throw new UserError(`${path} is not FASTA: it does not start with '>'`);
  }
  if (!records.length) throw new UserError(`${path} holds no proteins`);
  return records;
}

/** Token ids of a protein between BOS and EOS. */
function tokenize({ name, sequence }) {
  if (sequence === "") throw new UserError(`record '${name}' holds no residues`);
  const ids = [];
  for (let i = 0; i < sequence.length; ) {
    // No token begins another, so the first that fits is the only one.
    const id = TOKENS.findIndex((token) => sequence.startsWith(token, i));
    if (id < 0 || id === PAD)
      throw new UserError(
        `record '${name}': position ${i + 1} is not a residue of ESM-2's alphabet`,
      );
    ids.push(id);
    i += TOKENS[id].length;
  }
  return [CLS, ...ids, EOS];
}

/** Where each protein of a pack begins, and where the last one ends: N + 1 numbers. */
function boundsOf(proteins) {
  const bounds = [0];
  for (const ids of proteins) bounds.push(bounds.at(-1) + ids.length);
  return bounds;
}

/** The mean over each protein's residues, neither BOS nor EOS: [T, E] to [N, E]. */
function meanOfResidues({ data, dims: [, width] }, bounds) {
  const means = new Float32Array((bounds.length - 1) * width);
  for (let i = 0; i + 1 < bounds.length; i++) {
    const [begin, end] = [bounds[i] + 1, bounds[i + 1] - 1];
    for (let column = 0; column < width; column++) {
      let sum = 0;
      for (let row = begin; row < end; row++) sum += data[row * width + column];
      means[i * width + column] = sum / (end - begin);
    }
  }
  return { data: means, dims: [bounds.length - 1, width] };
}

/** NumPy's format 1.0 (numpy.lib.format) of float32. */
function writeNpy(path, { data, dims }) {
  let header = `{'descr': '<f4', 'fortran_order': False, 'shape': (${dims.join(", ")},)}`;
  header = header.padEnd(Math.ceil((header.length + 11) / 64) * 64 - 11) + "\n";
  const start = Buffer.from("\x93NUMPY\x01\0\0\0", "latin1");
  start.writeUInt16LE(header.length, 8);
  const values = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  writeFileSync(path, Buffer.concat([start, Buffer.from(header, "latin1"), values]));
}

async function embed(artifact, fasta, out) {
  if (!existsSync(join(artifact, "manifest.json")))
    throw new UserError(`${artifact} is not an artifact: no manifest.json`);
  const manifest = JSON.parse(readText(join(artifact, "manifest.json")));
  const entry = manifest.engines?.onnx;
  if (!entry) throw new UserError(`${artifact} holds no ONNX engine`);
  if (manifest.dtype !== "float32")
    throw new UserError(`${artifact} is in ${manifest.dtype}, and this example takes float32 alone`);
  const proteins = readFasta(fasta).map(tokenize);
  const bounds = boundsOf(proteins);

  const { InferenceSession, Tensor, env } = await import("onnxruntime-node");
  env.logLevel = "fatal"; // what is wrong is thrown too
  const path = join(artifact, entry.file);
  const session = await InferenceSession.create(path, { logSeverityLevel: 4 }).catch((error) => {
    throw new UserError(`cannot load ${path}: ${error.message.split("\n")[0]}`);
  });
  const longest = proteins.reduce((most, ids) => Math.max(most, ids.length), 0);
  const outputs = await session.run({
    input_ids: new Tensor("int64", BigInt64Array.from(proteins.flat(), BigInt), [bounds.at(-1)]),
    cu_seqlens: new Tensor("int32", Int32Array.from(bounds), [bounds.length]),
    max_seqlen: new Tensor("int64", BigInt64Array.of(BigInt(longest)), []),
  });

  mkdirSync(out, { recursive: true });
  const names = manifest.signature.outputs.map((output) => output.name);
  for (const name of names) writeNpy(join(out, `${name}.npy`), outputs[name]);
  // Layers ascend.
  const last = names.filter((name) => name.startsWith("representations.")).at(-1);
  if (last) writeNpy(join(out, "embeddings.npy"), meanOfResidues(outputs[last], bounds));
}

const paths = process.argv.slice(2);
if (paths.length !== 3) {
  console.error("usage: node embed.mjs ARTIFACT PROTEINS.fasta OUT_FOLDER");
  process.exit(2);
}
try {
  await embed(...paths);
} catch (error) {
  console.error(`embed: ${error.message}`);
  process.exitCode = error instanceof UserError ? 2 : 1;
}
