/**
 * What Yjs makes of updates, asked by JSON lines: one request a line on stdin, {op, ...arguments},
 * one answer a line on stdout, or {error}. Updates and state vectors are base64.
 */
import { createInterface } from 'node:readline'
import { canonicalType, deleteRanges, describe, stateVector, structRanges } from './described.mjs'
import * as Y from 'yjs'
import { VERSIONS, load, makeHonestSession } from './oracle_honest.mjs'
import { edit, makeSession } from './oracle_sessions.mjs'

// Yjs says things, too: answers are all that goes to stdout.
console.log = console.error

const decode = text => new Uint8Array(Buffer.from(text, 'base64'))
const encode = bytes => Buffer.from(bytes).toString('base64')

/** Which structs and deletes an update speaks of. */
const idsIn = update => {
  const { structs, ds } = Y.decodeUpdate(update)
  return JSON.stringify({ structs: structRanges(structs, () => 0), deletes: deleteRanges(ds) })
}

const docOf = (updates, gc) => {
  const doc = new Y.Doc({ gc })
  for (const update of updates) Y.applyUpdate(doc, update)
  return doc
}

/** Where texts begin to differ; whole ones don't fit on a screen. */
const excerpts = texts => {
  const [first, ...others] = Object.values(texts)
  let at = 0
  while (at < first.length && others.every(text => text[at] === first[at])) at++
  const start = Math.max(at - 60, 0)
  return Object.fromEntries(Object.entries(texts).map(([name, text]) => [name, text.slice(start, start + 300)]))
}

const differing = (a, b) => Object.keys(a).filter(name => a[name] !== b[name])

/**
 * Have Yjs try again to integrate what it holds back. It should never need to be told, but it
 * forgets the clock it waits for if the same client has a hole further on, and then waits too long.
 */
const retried = doc => {
  Y.applyUpdate(doc, Y.encodeStateAsUpdate(doc))
  return doc
}

/**
 * Compare documents with what Yjs makes of `deliveries`. A view is a fresh document that got the
 * first `have` of them and then `updates`. These must speak of the same structs and deletes as Yjs's
 * own diff for someone who has the first `have` does. The document agrees as
 * - "doc" if it equals the document that got all deliveries,
 * - "merged" if it equals the one that got Y.mergeUpdates of them,
 * - "diffed" if it equals the one that got the first `have`, and then Yjs's own diff of the merged,
 * - "retried" if it equals one of these after both were retried, but perhaps for format marks that
 *   show nowhere,
 * - "contested" if it equals none of them, and was said to be so.
 * Rarely these differ among themselves, for cleaning up formats and splitting surrogate pairs depend
 * on what comes in which transaction.
 */
const check = ({ deliveries, views, stateVectors, gc = true }) => {
  deliveries = deliveries.map(decode)
  const merged = Y.mergeUpdates(deliveries)
  const expected = stateVector(Y.encodeStateVectorFromUpdate(merged))
  for (const bytes of stateVectors) {
    const got = stateVector(decode(bytes))
    if (JSON.stringify(got) !== JSON.stringify(expected)) return { ok: false, what: 'the state vector', detail: { got, expected } }
  }
  const make = {
    doc: () => docOf(deliveries, gc),
    merged: () => docOf([merged], gc),
    diffed: have => {
      const doc = docOf(deliveries.slice(0, have), gc)
      Y.applyUpdate(doc, Y.diffUpdate(merged, Y.encodeStateVector(doc)))
      return doc
    }
  }
  const ofDoc = describe(make.doc())
  const ofMerged = describe(make.merged())
  const verdictOn = (doc, got, have) => {
    if (differing(got, ofDoc).length === 0) return 'doc'
    if (differing(got, ofMerged).length === 0) return 'merged'
    if (differing(got, describe(make.diffed(have))).length === 0) return 'diffed'
    const gotRetried = describe(retried(doc))
    // Which format marks Yjs cleans up depends on its transactions, which are others then.
    const agrees = reference => differing(gotRetried, describe(retried(reference(have))))
      .every(aspect => aspect === 'delete set' || aspect === 'origins')
    return Object.values(make).some(agrees) ? 'retried' : null
  }
  const as = []
  for (const { name, have, updates, contested } of views) {
    const doc = docOf(deliveries.slice(0, have), gc)
    const rest = Y.diffUpdate(merged, Y.encodeStateVector(doc))
    for (const update of updates) Y.applyUpdate(doc, decode(update))
    const ids = { got: idsIn(Y.mergeUpdates(updates.map(decode))), expected: idsIn(rest) }
    if (ids.got !== ids.expected) return { ok: false, what: `which ids are in ${name}`, detail: excerpts(ids) }
    const got = describe(doc)
    const verdict = verdictOn(doc, got, have) ?? (contested ? 'contested' : null)
    if (verdict === null) {
      const detail = differing(got, ofDoc).map(aspect => ({ aspect, ...excerpts({ got: got[aspect], doc: ofDoc[aspect], merged: ofMerged[aspect] }) }))
      return { ok: false, what: name, detail }
    }
    as.push(verdict)
  }
  return { ok: true, as }
}

/** What a client sees that got these updates one by one; or where Yjs threw. */
const seenBy = updates => {
  const doc = new Y.Doc()
  for (const [at, update] of updates.entries()) {
    try {
      Y.applyUpdate(doc, decode(update))
    } catch (error) {
      return { threw: `at ${at}: ${error.stack}` }
    }
  }
  let content
  try {
    const roots = [doc.getText('t'), doc.getMap('m'), doc.getArray('a'), doc.get('x', Y.XmlFragment)]
    content = JSON.stringify(roots.map(canonicalType))
  } catch (error) {
    content = `unreadable: ${error.message}`
  }
  return { content, stateVector: JSON.stringify(stateVector(Y.encodeStateVector(doc))) }
}

const operations = {
  check,

  /** What several clients see, each by the updates it got. */
  seen ({ clients }) {
    return { seen: clients.map(seenBy) }
  },

  session (request) {
    const { updates, classes } = makeSession(request)
    return { updates: updates.map(encode), classes }
  },

  /** What a server gets in honest sessions, one for each seed (see `makeHonestSession`). */
  async honest ({ seeds, versions = VERSIONS, ...request }) {
    await load(versions.includes('yjs') ? versions : [...versions, 'yjs'])
    return {
      sessions: seeds.map(seed => {
        const { frames, ...session } = makeHonestSession({ ...request, versions, seed })
        return { ...session, frames: frames.map(([client, kind, bytes]) => [client, kind, encode(bytes)]) }
      })
    }
  },

  /** What a client does who knows these updates. */
  edit ({ updates, ...request }) {
    return { updates: edit({ updates: updates.map(decode), ...request }).map(encode) }
  },

  /** Y.mergeUpdates of each group. */
  merge ({ groups }) {
    return { updates: groups.map(group => encode(Y.mergeUpdates(group.map(decode)))) }
  },

  /**
   * What clients send that got these updates, which need not be all that there is before them: their
   * whole state, structs that wait for others included. It keeps what is deleted.
   */
  states ({ groups }) {
    return { updates: groups.map(group => encode(Y.encodeStateAsUpdate(docOf(group.map(decode), false)))) }
  },

  /** Y.diffUpdate of each merged group, for one who has all groups before it. */
  diffs ({ groups }) {
    const doc = new Y.Doc({ gc: false })
    return {
      updates: groups.map(group => {
        const merged = Y.mergeUpdates(group.map(decode))
        const diff = Y.diffUpdate(merged, Y.encodeStateVector(doc))
        Y.applyUpdate(doc, merged)
        return encode(diff)
      })
    }
  },

  /** The state vectors of a document that got the first `at` of the deliveries, for each `at`. */
  state_vectors ({ deliveries, at }) {
    const doc = new Y.Doc()
    const vectors = [Y.encodeStateVector(doc)]
    for (const update of deliveries) {
      Y.applyUpdate(doc, decode(update))
      vectors.push(Y.encodeStateVector(doc))
    }
    return { stateVectors: at.map(index => encode(vectors[index])) }
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  let answer
  try {
    const { op, ...request } = JSON.parse(line)
    answer = await operations[op](request)
  } catch (error) {
    answer = { error: error.stack }
  }
  process.stdout.write(JSON.stringify(answer) + '\n')
}
