// What two linters say of documents, as the commands of Spectral and Redocly would by their own
// rules, which bring a hundred packages more.
import { readFileSync } from "node:fs";
import { createConfig, lint } from "@redocly/openapi-core";
import core from "@stoplight/spectral-core";
import parsers from "@stoplight/spectral-parsers";
import rulesets from "@stoplight/spectral-rulesets";

const recommended = await createConfig({ extends: ["recommended"] });
const linter = new core.Spectral();
linter.setRuleset({ extends: [rulesets.oas] });

async function bySpectral(file) {
  const document = new core.Document(readFileSync(file, "utf8"), parsers.Json, file);
  return (await linter.run(document)).map(({ code, path }) => [code, path]);
}

async function errorsByRedocly(file) {
  const found = await lint({ ref: file, config: recommended });
  return found
    .filter(({ severity }) => severity === "error")
    .map(({ ruleId, location }) => [ruleId, location[0].pointer]);
}

const [service, twin] = process.argv.slice(2);
const result = {
  spectral: await bySpectral(service),
  redocly: { service: await errorsByRedocly(service), twin: await errorsByRedocly(twin) },
};
console.log(JSON.stringify(result));
