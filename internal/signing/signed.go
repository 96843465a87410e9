package signing

// A Signed is the answer to a request for a certificate.
type Signed struct {
	// Chain is what was signed, leaf first and without the root, and Roots are those
	// that the mesh trusts; each is DER.
	Chain, Roots [][]byte
	// By is who signed. It is shared: do not change it.
	By *Authority
}
