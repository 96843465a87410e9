// Package rotation decides how a mesh moves from one authority to another
// without anybody being cut off: what an [Authority] is, which are trusted, which
// one signs, and when the next step is safe.
//
// It is pure: it gets what was seen of the mesh and returns what should hold. The
// elected outriggerd looks and writes (package controller), every replica follows
// (package identity), and the command line says what is wanted.
package rotation
