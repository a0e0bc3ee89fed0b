/** y-websocket's own servers, on a port of their choice: of 1.5.4, or @y/websocket-server. */
import http from 'node:http'
import { register } from 'node:module'
import { WebSocketServer } from 'ws'

// Their store is optional, and not installed: only imported.
const stub = 'data:text/javascript,export class LeveldbPersistence {}'
const hook = `export const resolve = (specifier, context, next) => specifier === 'y-leveldb'
  ? { url: ${JSON.stringify(stub)}, shortCircuit: true } : next(specifier, context)`
register('data:text/javascript,' + encodeURIComponent(hook))

const { setupWSConnection } = await import(process.argv[2])
const server = http.createServer()
const sockets = new WebSocketServer({ server })
sockets.on('connection', (socket, request) => setupWSConnection(socket, request))
server.listen(0, '127.0.0.1', () => console.log(`ws://127.0.0.1:${server.address().port}`))
