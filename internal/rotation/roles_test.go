package rotation

import (
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// root reads a MeshRootCertificate's spec.
func root(t *testing.T, name, text string) Root {
	t.Helper()
	var spec any
	if err := yaml.Unmarshal([]byte(text), &spec); err != nil {
		t.Fatal(err)
	}
	r, err := ParseRoot(name, spec)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func tresor(t *testing.T, name, role string) Root {
	t.Helper()
	return root(t, name, "{role: "+role+", trustDomain: d, provider: {tresor: {ca: {secretRef: {name: "+name+", namespace: sys}}}}}")
}

func TestRootProviders(t *testing.T) {
	for text, want := range map[string]string{
		"{provider: {tresor: {ca: {secretRef: {name: osm-ca-bundle, namespace: sys}}}}}":                                                               `{"name":"r","trustDomain":"cluster.local","builtIn":{"secret":"osm-ca-bundle"}}`,
		"{trustDomain: d, provider: {certManager: {issuerName: osm-ca, issuerKind: ClusterIssuer, issuerGroup: cert-manager.io}}}":                     `{"name":"r","trustDomain":"d","certManager":{"issuer":"osm-ca","kind":"ClusterIssuer","group":"cert-manager.io"}}`,
		"{provider: {vault: {host: vault.osm, port: 8200, role: osm, protocol: https, token: {secretKeyRef: {name: t, key: token, namespace: sys}}}}}": `{"name":"r","trustDomain":"cluster.local","vault":{"address":"https://vault.osm:8200","mount":"pki","role":"osm","token":{"secret":"t","key":"token"},"caSecret":"vault-ca"}}`,
	} {
		got, err := root(t, "r", text).Authority(RootScope{Namespace: "sys", VaultCA: "vault-ca"})
		if err != nil || string(got.JSON()) != want {
			t.Errorf("%s is %s, %v; want %s", text, got.JSON(), err, want)
		}
	}
	for text, want := range map[string]string{
		"{provider: {tresor: {ca: {secretRef: {name: s, namespace: elsewhere}}}}}": `"elsewhere"; only sys is allowed`,
		"{provider: {}}": "exactly one is allowed",
		"{provider: {vault: {host: v, port: 8200, role: r, protocol: gopher, token: {secretKeyRef: {name: t, key: k}}}}}": "vault.address",
	} {
		if _, err := root(t, "r", text).Authority(RootScope{Namespace: "sys", VaultCA: "vault-ca"}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v does not say %s", text, err, want)
		}
	}
}

// TestRolesOfVault wants a root to be another authority when the chart names another CA
// for Vault's server, so that it is opened anew, and the same where nothing names one,
// as on the command line.
func TestRolesOfVault(t *testing.T) {
	r := root(t, "mrc", "{role: active, provider: {vault: {host: v, port: 8200, role: osm, protocol: https, token: {secretKeyRef: {name: t, key: k}}}}}")
	first, err := r.Authority(RootScope{Namespace: "sys", VaultCA: "old-ca"})
	if err != nil {
		t.Fatal(err)
	}
	s := NewState(first, "")
	if goal, _ := Roles([]Root{r}, s, RootScope{Namespace: "sys"}); goal == nil || !goal.Same(s.Holds()) {
		t.Errorf("the goal is %+v; want what holds, %+v", goal, s.Holds())
	}
	goal, _ := Roles([]Root{r}, s, RootScope{Namespace: "sys", VaultCA: "new-ca"})
	if goal == nil || goal.Sign.Name != "mrc-2" || goal.Sign.Vault.CASecret != "new-ca" {
		t.Errorf("with another CA the goal is %+v; want another authority", goal)
	}
}

// TestRolesByOSMsTable reads the roles of each step of OSM's end-to-end test.
func TestRolesByOSMsTable(t *testing.T) {
	for name, tc := range map[string]struct {
		roles [2]string
		signs string // now
		want  string // who signs, and who is trusted besides
	}{
		"one active":        {[2]string{RoleActive, RoleInactive}, "mrc1", "mrc1"},
		"second passive":    {[2]string{RoleActive, RolePassive}, "mrc1", "mrc1 mrc2"},
		"both active":       {[2]string{RoleActive, RoleActive}, "mrc1", "mrc1 mrc2"},
		"both, other signs": {[2]string{RoleActive, RoleActive}, "mrc2", "mrc2 mrc1"},
		"first passive":     {[2]string{RolePassive, RoleActive}, "mrc1", "mrc2 mrc1"},
		"first inactive":    {[2]string{RoleInactive, RoleActive}, "mrc2", "mrc2"},
		"none active":       {[2]string{RolePassive, RoleInactive}, "mrc1", ""},
		"two passive":       {[2]string{RolePassive, RolePassive}, "mrc1", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := NewState(Authority{Name: tc.signs, TrustDomain: "d", BuiltIn: &BuiltIn{Secret: tc.signs}}, "")
			goal, verdicts := Roles([]Root{tresor(t, "mrc2", tc.roles[1]), tresor(t, "mrc1", tc.roles[0])}, s, RootScope{Namespace: "sys"})
			got := ""
			if goal != nil {
				for _, a := range goal.All() {
					got += " " + a.Name
				}
			}
			if strings.TrimSpace(got) != tc.want {
				t.Errorf("the goal is%s; want %s", got, tc.want)
			}
			for _, v := range verdicts {
				if bad := v.Fault != ""; bad != (tc.want == "" && v.Root.Spec.Role != RoleInactive) {
					t.Errorf("%s: fault %q", v.Root.Name, v.Fault)
				}
			}
		})
	}
}

func TestRolesKeepTheNameOfAnAuthority(t *testing.T) {
	s := NewState(Authority{Name: "outrigger-ca", TrustDomain: "d", BuiltIn: &BuiltIn{Secret: "mrc1"}}, "")
	goal, _ := Roles([]Root{tresor(t, "mrc1", RoleActive)}, s, RootScope{Namespace: "sys"})
	if goal == nil || !goal.Same(s.Holds()) {
		t.Errorf("a MeshRootCertificate for what signs already starts a rotation: %+v", goal)
	}
	bad := tresor(t, "mrc2", "boss")
	if _, verdicts := Roles([]Root{tresor(t, "mrc1", RoleActive), bad}, s, RootScope{Namespace: "sys"}); !strings.Contains(verdicts[1].Fault, `"boss"`) {
		t.Errorf("a role that there is not: %q", verdicts[1].Fault)
	}
}

func TestJudgeRoot(t *testing.T) {
	r := func(name, role string) Root { return tresor(t, name, role) }
	before := func(role string) *Root { return new(r("mrc2", role)) }
	other := root(t, "mrc2", "{role: passive, trustDomain: other, provider: {tresor: {ca: {secretRef: {name: mrc2}}}}}")
	for name, tc := range map[string]struct {
		before *Root
		after  Root
		others []Root
		want   string // empty means that it is let in
	}{
		"first":               {after: r("mrc1", RoleActive)},
		"inactive alone":      {after: r("mrc1", RoleInactive)},
		"second active":       {after: r("mrc2", RoleActive), others: []Root{r("mrc1", RoleActive)}, want: "cannot create MRC sys/mrc2 with active role. An MRC with this role already exists in the control plane namespace."},
		"second passive":      {after: r("mrc3", RolePassive), others: []Root{r("mrc1", RoleActive), r("mrc2", RolePassive)}, want: "with passive role"},
		"passive beside one":  {after: r("mrc2", RolePassive), others: []Root{r("mrc1", RoleActive)}},
		"passive alone":       {after: r("mrc2", RolePassive), want: "at least one active"},
		"no trust domain":     {after: root(t, "mrc1", "{role: active, provider: {tresor: {ca: {secretRef: {name: a}}}}}"), want: "spec.trustDomain is empty"},
		"no issuer":           {after: root(t, "mrc1", "{role: active, trustDomain: d, provider: {certManager: {}}}"), want: "certManager.issuer"},
		"step 2":              {before: before(RoleInactive), after: r("mrc2", RolePassive), others: []Root{r("mrc1", RoleActive)}},
		"step 3":              {before: before(RolePassive), after: r("mrc2", RoleActive), others: []Root{r("mrc1", RoleActive)}},
		"step 4":              {before: before(RoleActive), after: r("mrc2", RolePassive), others: []Root{r("mrc1", RoleActive)}},
		"step 5":              {before: before(RolePassive), after: r("mrc2", RoleInactive), others: []Root{r("mrc1", RoleActive)}},
		"no active is left":   {before: before(RoleActive), after: r("mrc2", RolePassive), others: []Root{r("mrc1", RoleInactive)}, want: "at least one active"},
		"two passive":         {before: before(RoleActive), after: r("mrc2", RolePassive), others: []Root{r("mrc1", RolePassive)}, want: "2 passive"},
		"three in use":        {before: before(RoleInactive), after: r("mrc2", RolePassive), others: []Root{r("mrc1", RoleActive), r("mrc3", RolePassive)}, want: "two in all"},
		"active to inactive":  {before: before(RoleActive), after: r("mrc2", RoleInactive), others: []Root{r("mrc1", RoleActive)}, want: "from active to inactive"},
		"inactive to active":  {before: before(RoleInactive), after: r("mrc2", RoleActive), others: []Root{r("mrc1", RoleActive)}, want: "from inactive to active"},
		"other trust domain":  {before: before(RolePassive), after: other, others: []Root{r("mrc1", RoleActive)}, want: "cannot change"},
		"labels of old fault": {before: before(RolePassive), after: r("mrc2", RolePassive)},
	} {
		t.Run(name, func(t *testing.T) {
			got := strings.Join(JudgeRoot("sys", tc.before, tc.after, tc.others), "\n")
			if tc.want == "" && got != "" || !strings.Contains(got, tc.want) {
				t.Errorf("judged %q; want %q", got, tc.want)
			}
		})
	}
}

// TestRolesForgetWhatWasSaidBefore: what the command line said counts for the rotation
// that is under way, and no longer.
func TestRolesForgetWhatWasSaidBefore(t *testing.T) {
	said := Control{Goal: Goal{Sign: authority("a", "d")}, By: "somebody", Undo: true, Chart: true, Paused: true, Forced: []string{"shop/away"}}
	goal := Goal{Sign: authority("b", "d")}
	for name, tc := range map[string]struct {
		state State
		want  Control
	}{
		"at rest":   {State{}, Control{Goal: goal, By: "MeshRootCertificates"}},
		"under way": {State{Rotation: &Rotation{}}, Control{Goal: goal, By: "MeshRootCertificates", Paused: true, Forced: []string{"shop/away"}}},
	} {
		if got := said.ByRoles(goal, tc.state); string(got.JSON()) != string(tc.want.JSON()) {
			t.Errorf("%s: %s, want %s", name, got.JSON(), tc.want.JSON())
		}
	}
}
