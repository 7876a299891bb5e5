import { createNotesNotesBatchPost, readNotesNotesGet } from "./hey";
import { client } from "./hey/client.gen";

declare const process: { argv: string[] };

client.setConfig({ baseUrl: process.argv[2] });

async function main() {
  const stored = await createNotesNotesBatchPost({
    headers: { "Idempotency-Key": "hey-api" },
    body: [
      { text: "b", completed: false },
      { text: "c", completed: true },
    ],
  });
  const page = await readNotesNotesGet({ query: { limit: 1, completed: false } });
  const refused = await createNotesNotesBatchPost({ body: [] });
  const detail = refused.error?.detail;
  console.log(
    JSON.stringify({
      stored: stored.data?.map((note) => note.text),
      page: page.data?.map((note) => note.text),
      refused: typeof detail === "object" ? detail[0].msg : detail,
    }),
  );
}

main();
