package rotation

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseAuthority(t *testing.T) {
	cases := map[string]struct {
		reason, text string
		want         Authority
		faults       []string // what the error must name; none means no error
	}{
		"built in": {
			reason: "the mesh's own root needs no words",
			text:   `{"trustDomain":"cluster.local","builtIn":{}}`,
			want:   Authority{Name: "outrigger-ca", TrustDomain: "cluster.local", BuiltIn: &BuiltIn{Secret: "outrigger-ca"}},
		},
		"dotted Secret": {
			reason: "the name is a label even if the Secret's is not",
			text:   `{"trustDomain":"d","builtIn":{"secret":"my.ca"}}`,
			want:   Authority{Name: "my-ca", TrustDomain: "d", BuiltIn: &BuiltIn{Secret: "my.ca"}},
		},
		"cert-manager": {
			text: `{"trustDomain":"d","certManager":{"issuer":"mesh","rootsConfigMap":"roots"}}`,
			want: Authority{Name: "cert-manager-mesh", TrustDomain: "d", CertManager: &CertManager{Issuer: "mesh", Kind: "Issuer", Group: "cert-manager.io", RootsConfigMap: "roots"}},
		},
		"Vault": {
			text: `{"name":"v","trustDomain":"d","vault":{"address":"https://vault:8200","role":"mesh","kubernetes":{"role":"outriggerd"}}}`,
			want: Authority{Name: "v", TrustDomain: "d", Vault: &Vault{Address: "https://vault:8200", Mount: "pki", Role: "mesh", Kubernetes: &VaultKubernetes{Role: "outriggerd", Mount: "kubernetes", Audience: "vault"}}},
		},
		"nothing":       {text: `{}`, faults: []string{"name", "trustDomain", "exactly one"}},
		"two kinds":     {text: `{"trustDomain":"d","builtIn":{},"certManager":{"issuer":"i"}}`, faults: []string{"2 of builtIn, certManager and vault"}},
		"unknown field": {reason: "a typing error is not ignored", text: `{"trustDomain":"d","builtin":{},"vualt":{}}`, faults: []string{"vualt"}},
		"address":       {text: `{"trustDomain":"10.0.0.1","builtIn":{}}`, faults: []string{"10.0.0.1", "an address is not allowed"}},
		"two ways to log in": {
			text:   `{"trustDomain":"d","vault":{"address":"https://v","role":"r","token":{"secret":"s","key":"k"},"kubernetes":{"role":"r"}}}`,
			faults: []string{"2 of vault.token and vault.kubernetes"},
		},
		"no way to log in": {text: `{"trustDomain":"d","vault":{"address":"vault:8200","role":"../sys"}}`, faults: []string{"0 of vault.token", `vault.address is "vault:8200"`, `vault.role is "../sys"`}},
		"plain text": {
			reason: "a token is never sent where the network can read it",
			text:   `{"trustDomain":"d","vault":{"address":"http://vault:8200","role":"r","token":{"secret":"s","key":"k"}}}`, faults: []string{`vault.address is "http://vault:8200"`},
		},
		"roots are text": {text: `{"trustDomain":"d","certManager":{"issuer":"i","roots":"here"}}`, faults: []string{"certManager.roots", "PEM"}},
		"more":           {text: `{"trustDomain":"d","builtIn":{}} {}`, faults: []string{"more follows"}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := ParseAuthority([]byte(tc.text), "")
			if (err != nil) != (len(tc.faults) > 0) {
				t.Fatalf("%s: %v", tc.reason, err)
			}
			for _, fault := range tc.faults {
				if !strings.Contains(err.Error(), fault) {
					t.Errorf("%s: %v does not name %s", tc.reason, err, fault)
				}
			}
			if err != nil {
				return
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("%s: -want +got\n%s", tc.reason, diff)
			}
			again, err := ParseAuthority(got.JSON(), "another.domain")
			if err != nil || !again.Same(got) || again.Name != got.Name {
				t.Errorf("%s is read back as %s (%v)", got.JSON(), again.JSON(), err)
			}
		})
	}
}
