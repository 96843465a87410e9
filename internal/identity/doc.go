// Package identity decides who gets a certificate, and makes the certificates:
// for workloads, for outriggerd itself, and for its webhooks.
//
// A caller is verified by its service account token and its pod ([Verifier]);
// its request must name exactly what it is ([Signer]); then an [Issuer] signs.
// The built-in one is [CA]. [Serving] keeps outriggerd's own certificate,
// [Trust] hands the roots to the namespaces of the mesh, and [Webhook] is a CA of
// its own for the API server's calls, whose name is outside the trust domain.
//
// It knows neither gRPC streams nor what policy says: see package server. Keys of
// workloads never come here, and the CA's key leaves its Secret only into memory.
//
// # Where the CA is kept
//
// The Secret outrigger-ca in the system namespace holds ca.crt and ca.key, the
// root, unless a Secret of the user's takes its place. It is created once and
// never updated. It signs an intermediate that is in memory only, one for each
// replica, which signs leaves. The ConfigMap outrigger-trust in the system
// namespace records the roots since the first start, as do those in the mesh's
// namespaces: where any of them exists, a missing Secret is a loss that people
// must hear of, and no new root is made; nor is one used that is not recorded.
package identity
