// Package hubtest is a NervesHub to test against: it answers a device as the
// recordings in testdata/transcripts show the real server answering, misuse
// included. It crashes a channel where NervesHub crashes it, counts attempts,
// parks devices, loses updates and closes sockets as NervesHub does, and it
// keeps the server-side state of every device so that a test can ask for it.
//
// Its decisions are pure (device_state.go and the record_*.go files: methods
// that are told the time and return what happened); sockets and channels only
// carry them out. The same Hub runs on a TCP listener with TLS and inside a
// testing/synctest bubble over an in-memory one.
//
// It must not know the gateway: it imports nothing of it and writes its own
// JSON, so that a mistake in the gateway's client is not repeated in its judge.
package hubtest
