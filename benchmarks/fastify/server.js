// The notes on Fastify and postgres.js. The PG* variables say where the database is.
import Fastify from 'fastify'
import postgres from 'postgres'

const sql = postgres({ max: Number(process.env.DATABASE_POOL_MAX ?? 5) })

const noteIn = {
  type: 'object',
  required: ['text', 'completed'],
  properties: { text: { type: 'string' }, completed: { type: 'boolean' } },
}

const note = {
  type: 'object',
  properties: { id: { type: 'integer' }, ...noteIn.properties },
}

const notFound = { type: 'object', properties: { detail: { type: 'string' } } }

const app = Fastify({ logger: false })

app.get('/notes/', {
  schema: {
    querystring: {
      type: 'object',
      properties: { limit: { type: 'integer' }, after: { type: 'integer', default: 0 } },
    },
    response: { 200: { type: 'array', items: note } },
  },
  handler: (request) => {
    const { limit, after } = request.query
    return limit === undefined
      ? sql`SELECT id, text, completed FROM notes`
      : sql`SELECT id, text, completed FROM notes WHERE id > ${after} ORDER BY id LIMIT ${limit}`
  },
})

app.get('/notes/:id', {
  schema: {
    params: { type: 'object', properties: { id: { type: 'integer' } } },
    response: { 200: note, 404: notFound },
  },
  handler: async (request, reply) => {
    const [row] = await sql`SELECT id, text, completed FROM notes WHERE id = ${request.params.id}`
    return row ?? reply.code(404).send({ detail: 'Note not found' })
  },
})

app.post('/notes/', {
  schema: { body: noteIn, response: { 200: note } },
  handler: async (request) => {
    const { text, completed } = request.body
    const [row] = await sql`
      INSERT INTO notes (text, completed) VALUES (${text}, ${completed})
      RETURNING id, text, completed`
    return row
  },
})

app.addHook('onClose', () => sql.end())

for (const signal of ['SIGINT', 'SIGTERM']) {
  process.once(signal, () => app.close())
}

await app.listen({ host: '127.0.0.1', port: Number(process.env.PORT) })
