// A document for who joins, as an update on standard output: 100,000 insertions by 20 authors at
// random places of one text, of as many characters each as the argument says. Every run gives the
// same.
import * as Y from 'yjs'

const EDITS = 100_000
const AUTHORS = 20
const CHARACTERS = Number(process.argv[2]) // besides, an item takes some 17 bytes

let seed = 1
const random = below => { // Park and Miller's
  seed = (seed * 48271) % 2147483647
  return seed % below
}

const doc = new Y.Doc()
const text = doc.getText('text')
for (let i = 0; i < EDITS; i++) {
  doc.clientID = 1 + random(AUTHORS) // far below the ids of those who edit it later
  text.insert(random(text.length + 1), 'abcdefghijklmnopqrstuvwxyz'[i % 26].repeat(CHARACTERS))
}
process.stdout.write(Y.encodeStateAsUpdate(doc))
