// Package envoytest serves Sets to a real Envoy and says whether it took them.
//
// It is for tests. Its delta ADS server knows one Envoy, has no security and
// none of the care of package server; what it shares with that is the order of
// types, without which Envoy would warm for ever.
package envoytest
