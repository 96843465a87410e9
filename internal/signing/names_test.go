package signing

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

func TestNames(t *testing.T) {
	cases := map[string]struct {
		reason   string
		identity mesh.Identity
		wantDNS  []string
	}{
		"Plain": {
			reason:   "An ordinary service account has OSM's DNS name besides its URI.",
			identity: mesh.Identity{Namespace: "shop", ServiceAccount: "cart"},
			wantDNS:  []string{"cart.shop.cluster.local"},
		},
		"DottedServiceAccount": {
			reason:   "A dot in the service account could make the name of another namespace's service.",
			identity: mesh.Identity{Namespace: "svc", ServiceAccount: "outriggerd.outrigger-system"},
		},
		"DottedElsewhere": {
			reason:   "Dots are ambiguous in any namespace.",
			identity: mesh.Identity{Namespace: "c", ServiceAccount: "a.b"},
		},
		"NamespaceSvc": {
			reason:   "x.svc.cluster.local could be a Service's name in DNS.",
			identity: mesh.Identity{Namespace: "svc", ServiceAccount: "x"},
		},
		"LongServiceAccount": {
			reason:   "Service accounts may be longer than a label of DNS.",
			identity: mesh.Identity{Namespace: "shop", ServiceAccount: strings.Repeat("a", 64)},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			uris, dns := Names(tc.identity, "cluster.local")
			if diff := cmp.Diff(tc.wantDNS, dns); diff != "" {
				t.Errorf("%s\nDNS names (-want +got):\n%s", tc.reason, diff)
			}
			if len(uris) != 1 {
				t.Fatalf("%s\nwant one URI, got %v", tc.reason, uris)
			}
			// The form that the rest of the mesh compares with.
			if diff := cmp.Diff(tc.identity.URI("cluster.local"), uris[0].String()); diff != "" {
				t.Errorf("%s\nURI (-want +got):\n%s", tc.reason, diff)
			}
		})
	}
}

func TestDNSNameLength(t *testing.T) {
	domain := strings.Repeat("a.", 120) + "b"
	if name, ok := DNSName("shop", "cart", domain); !ok {
		t.Errorf("a name of %d bytes fits, but there is none", len("cart.shop.")+len(domain))
	} else if len(name) > 253 {
		t.Errorf("%d bytes do not fit into a DNS name", len(name))
	}
	if name, ok := DNSName("shop", "cart", domain+"bcdefg"); ok {
		t.Errorf("a name of %d bytes does not fit, but %q was given", len(name), name)
	}
}
