// Has y-leveldb write the store that test_migrate reads. Run once, by hand, where y-leveldb 0.2.0
// is installed: node make_leveldb.mjs DIRECTORY
import { createRequire } from 'node:module'
import { join } from 'node:path'

const require = createRequire(join(process.cwd(), 'x'))
const { LeveldbPersistence } = require('y-leveldb')

const persistence = new LeveldbPersistence(process.argv[2])
const updates = ['01010100040104746578740161' + '00', '01010101840100016200', '01010102840101016300']
for (const [room, count] of [['one', 3], ['folder/räume', 2]]) {
  for (const update of updates.slice(0, count)) {
    await persistence.storeUpdate(room, new Uint8Array(Buffer.from(update, 'hex')))
  }
}
await persistence.setMeta('one', 'owner', 'ada')
await persistence.getStateVector('one')
await persistence.destroy()
