import { createNotesNotesBatchPost, readNotesNotesGet } from "./generated";

declare const process: { argv: string[] };

const send = globalThis.fetch;
globalThis.fetch = (path, init) => send(process.argv[2] + path, init);

async function main() {
  const stored = await createNotesNotesBatchPost([
    { text: "b", completed: false },
    { text: "c", completed: true },
  ]);
  const page = await readNotesNotesGet({ limit: 1, completed: false });
  const refused = await createNotesNotesBatchPost([]);
  console.log(
    JSON.stringify({
      stored: stored.status === 200 ? stored.data.map((note) => note.text) : stored.status,
      page: page.status === 200 ? page.data.map((note) => note.text) : page.status,
      refused: refused.status === 422 ? refused.data.detail![0].msg : refused.status,
    }),
  );
}

main();
