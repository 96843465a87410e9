// Package webhook answers the API server's admission requests: it decodes a pod,
// looks its namespace up, asks package injector, and answers with a patch, a
// refusal or a warning. Policy objects and annotations that could not be honoured
// it refuses.
//
// [New] is the HTTP handler, and [Configurations] is what the API server must be
// told about it: which pods it sends to which path. The two belong together: a
// path says which namespace selector matched, and the handler believes it over
// its own, possibly older, view of the namespace.
//
// Nothing here has side effects. It makes no key, calls no API, reads no file and
// writes no event; a dry run differs only in that it is not counted. Serving TLS
// and keeping the certificate fresh is the caller's business.
//
// configurations.go holds selectors and conditions, review.go the HTTP part,
// inject.go, validate.go and refuse.go the answers.
package webhook
