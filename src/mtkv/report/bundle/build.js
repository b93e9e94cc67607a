// Bundles entry.js and collects the licences of every package whose code is in the bundle.
const { readFileSync, readdirSync, writeFileSync } = require("node:fs");
const { join } = require("node:path");
const esbuild = require("esbuild");

const out = join(__dirname, "../static");
const modules = join(__dirname, "node_modules");
const facts = (name) => JSON.parse(readFileSync(join(modules, name, "package.json"), "utf8"));
const banner = `/**
* plotly.js v${facts("plotly.js").version}, core and the traces scatter, bar, heatmap, scatterpolar, waterfall
* Copyright 2012-2026, Plotly, Inc. All rights reserved. Licensed under the MIT license.
* Made by mtkv/report/bundle; the licences of what it contains are in plotly.LICENSES.txt.
*/`;

const made = esbuild.buildSync({
  entryPoints: [join(__dirname, "entry.js")], outfile: join(out, "plotly.min.js"), globalName: "Plotly", format: "iife", bundle: true,
  minify: true, target: "es2020", define: { global: "window" }, loader: { ".css": "empty" }, banner: { js: banner }, metafile: true,
  legalComments: "none",
});

const used = Object.values(made.metafile.outputs).flatMap((file) => Object.entries(file.inputs))
  .filter(([path, { bytesInOutput }]) => bytesInOutput && path.includes("node_modules/"))
  .map(([path]) => path.split("node_modules/").at(-1).split("/"))
  .map(([first, second]) => (first.startsWith("@") ? `${first}/${second}` : first));
const notice = (name) => {
  const file = readdirSync(join(modules, name)).find((entry) => /^(licen[cs]e|copying)/i.test(entry));
  const { version, license, author } = facts(name);
  const text = file ? readFileSync(join(modules, name, file), "utf8") : `License: ${license}. Author: ${author?.name ?? author ?? "see package"}.`;
  return `${name} ${version}\n${"=".repeat(60)}\n${text.trim()}\n`;
};
writeFileSync(join(out, "plotly.LICENSES.txt"), [...new Set(used)].sort().map(notice).join("\n\n"));
