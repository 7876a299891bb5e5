// The notes on Bun.serve and Bun.SQL. The PG* variables say where the database is.
import { SQL } from 'bun'

const { PGHOST, PGPORT, PGUSER, PGPASSWORD, PGDATABASE, DATABASE_POOL_MAX, PORT } = process.env

const sql = new SQL({
  adapter: 'postgres',
  ...(PGHOST.startsWith('/') ? { path: `${PGHOST}/.s.PGSQL.${PGPORT}` } : { hostname: PGHOST }),
  port: Number(PGPORT),
  username: PGUSER,
  password: PGPASSWORD,
  database: PGDATABASE,
  max: Number(DATABASE_POOL_MAX ?? 5),
})

// Ids have 64 bits, which Bun.SQL gives as texts.
function numbered(rows) {
  for (const row of rows) row.id = Number(row.id)
  return rows
}

const invalid = () => Response.json({ detail: 'Invalid input' }, { status: 422 })

async function listNotes(request) {
  const start = request.url.indexOf('?')
  if (start < 0) return Response.json(numbered(await sql`SELECT id, text, completed FROM notes`))
  const query = new URLSearchParams(request.url.slice(start))
  const limit = Number(query.get('limit') ?? 1000)
  const after = Number(query.get('after') ?? 0)
  if (!Number.isInteger(limit) || !Number.isInteger(after)) return invalid()
  const rows = await sql`
    SELECT id, text, completed FROM notes WHERE id > ${after} ORDER BY id LIMIT ${limit}`
  return Response.json(numbered(rows))
}

async function createNote(request) {
  const { text, completed } = await request.json()
  if (typeof text !== 'string' || typeof completed !== 'boolean') return invalid()
  const [row] = numbered(
    await sql`
      INSERT INTO notes (text, completed) VALUES (${text}, ${completed})
      RETURNING id, text, completed`,
  )
  return Response.json(row)
}

async function readNote(request) {
  const id = Number(request.params.id)
  if (!Number.isInteger(id)) return invalid()
  const [row] = numbered(await sql`SELECT id, text, completed FROM notes WHERE id = ${id}`)
  return row ? Response.json(row) : Response.json({ detail: 'Note not found' }, { status: 404 })
}

const server = Bun.serve({
  hostname: '127.0.0.1',
  port: Number(PORT),
  routes: {
    '/notes/': { GET: listNotes, POST: createNote },
    '/notes/:id': { GET: readNote },
  },
})

async function stop() {
  await server.stop()
  await sql.close()
}

for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, stop)
