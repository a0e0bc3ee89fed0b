// Makes Yjs updates of an editing trace (JSON on standard input): each behind its length, 4 bytes.
import { readFileSync } from 'node:fs'

const Y = await import(process.env.YJS)
const trace = JSON.parse(readFileSync(0, 'utf8'))
const doc = new Y.Doc()
doc.clientID = 3_000_000_000
const text = doc.getText('text')
const out = []
doc.on('update', update => {
  const length = Buffer.alloc(4)
  length.writeUInt32LE(update.length)
  out.push(length, update)
})
for (const { patches } of trace.txns) {
  doc.transact(() => {
    for (const [position, deleted, inserted] of patches) {
      if (deleted) text.delete(position, deleted)
      if (inserted) text.insert(position, inserted)
    }
  })
}
if (text.toString() !== trace.endContent) throw new Error('the trace does not end as it should')
process.stdout.write(Buffer.concat(out))
