// Package vault asks a Vault server for what the mesh needs of it: a certificate
// signed by a PKI engine, the engine's own certificates, and a token to ask with.
//
// It speaks the HTTP API and knows nothing of the mesh: which certificate, for
// whom, and what to do about an error is for package identity. It holds no token
// and no state beyond connections, and writes no log.
package vault
