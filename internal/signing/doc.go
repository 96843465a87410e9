// Package signing is the contract between outrigger-agent, which asks for a
// certificate, and outriggerd, which signs it: one gRPC call, generated from
// signing.proto, and how a caller's identity becomes the names of a certificate.
//
// It holds no policy. Package identity decides who gets what.
package signing
