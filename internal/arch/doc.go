// Package arch is about the source tree itself: its tests say which package may
// import which, what only one package may touch, and that the documents agree
// with the code. Nothing imports it, and it has no code of its own.
package arch
