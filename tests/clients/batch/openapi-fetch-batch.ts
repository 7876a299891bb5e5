import createClient from "openapi-fetch";
import type { paths } from "./schema";

declare const process: { argv: string[] };

const client = createClient<paths>({ baseUrl: process.argv[2] });

async function main() {
  const { data, error } = await client.POST("/notes/batch", {
    params: { header: { "Idempotency-Key": "openapi-fetch" } },
    body: [
      { text: "b", completed: false },
      { text: "c", completed: true },
    ],
  });
  const page = await client.GET("/notes/", { params: { query: { limit: 1, completed: false } } });
  const refused = await client.POST("/notes/batch", { body: [] });
  const detail = refused.error?.detail;
  console.log(
    JSON.stringify({
      stored: data?.map((note) => note.text),
      page: page.data?.map((note) => note.text),
      refused: typeof detail === "object" ? detail[0].msg : detail,
    }),
  );
}

main();
