package mesh

import (
	"strings"
	"testing"
)

func TestParseURI(t *testing.T) {
	cases := map[string]struct {
		reason string
		uri    string
		want   Identity
	}{
		"OurOwnForm": {
			reason: "what URI writes is read back",
			uri:    "spiffe://cluster.local/ns/shop/sa/web", want: Identity{Namespace: "shop", ServiceAccount: "web"},
		},
		"DottedAccount":    {reason: "service accounts may have dots", uri: "spiffe://cluster.local/ns/shop/sa/a.b", want: Identity{Namespace: "shop", ServiceAccount: "a.b"}},
		"OtherTrustDomain": {reason: "another mesh's name is nobody here", uri: "spiffe://cluster.local.evil/ns/shop/sa/web"},
		"MorePath":         {reason: "only the exact form counts", uri: "spiffe://cluster.local/ns/shop/sa/web/x"},
		"EmptyAccount":     {reason: "an empty name is nobody", uri: "spiffe://cluster.local/ns/shop/sa/"},
		"EmptyNamespace":   {reason: "an empty name is nobody", uri: "spiffe://cluster.local/ns//sa/web"},
		"NoScheme":         {reason: "it is a URI, not a path", uri: "cluster.local/ns/shop/sa/web"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := ParseURI(c.uri, "cluster.local")
			if got != c.want || (err != nil) != c.want.IsZero() {
				t.Errorf("%s: ParseURI(%q) = %v, %v; want %v", c.reason, c.uri, got, err, c.want)
			}
			if err == nil && got.URI("cluster.local") != c.uri {
				t.Errorf("%q is written back as %q", c.uri, got.URI("cluster.local"))
			}
		})
	}
}

func FuzzParseProxyID(f *testing.F) {
	for _, s := range []string{"shop/web-0/uid", "", "a/b", "a/b/c/d", "//", "a//c", strings.Repeat("x", 2*maxNodeID)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseProxyID(s)
		if err != nil {
			if id != (ProxyID{}) {
				t.Errorf("%q is refused, and still read as %v", s, id)
			}
			return
		}
		if id.String() != s {
			t.Errorf("%q is written back as %q", s, id)
		}
		if id.Namespace == "" || id.Pod == "" || id.UID == "" || len(s) > maxNodeID {
			t.Errorf("%q is accepted as %v", s, id)
		}
	})
}
