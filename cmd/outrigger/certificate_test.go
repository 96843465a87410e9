package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/outrigger-mesh/outrigger/internal/controller"
	"github.com/outrigger-mesh/outrigger/internal/rotation"
)

// rootPEM is a root that ends then.
func rootPEM(t *testing.T, end time.Time) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotAfter: end, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func builtIn(name string) rotation.Authority {
	return rotation.Authority{Name: name, TrustDomain: "cluster.local", BuiltIn: &rotation.BuiltIn{Secret: name}}
}

func TestCertificateStatus(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	state := rotation.NewState(builtIn("outrigger-ca"), rootPEM(t, now.AddDate(0, 0, 20)))
	state.Trusted = append(state.Trusted, rotation.Trusted{Authority: builtIn("outrigger-ca-2"), Roots: rootPEM(t, now.AddDate(10, 0, 0)), Since: 2})
	state.Generation = 2
	state.Rotation = &rotation.Rotation{From: "outrigger-ca", Goal: rotation.Goal{Sign: builtIn("outrigger-ca-2")}, By: "anna", Step: rotation.StepTrust}
	seen := rotation.Seen{
		Pods: []rotation.Pod{
			{Name: "shop/cart", UID: "1", Connected: true, Trusts: 2, Leaf: &rotation.Leaf{Authority: "outrigger-ca", End: now.Add(3 * time.Hour)}},
			{Name: "shop/web", UID: "2"},
		},
		Replicas: []rotation.Replica{{Name: "outriggerd-1", Heard: true, Generation: 2, Serving: "outrigger-ca"}},
	}
	status := newStatus(controller.Authorities{State: state, Chart: builtIn("mine")}, seen, nil, now)
	text := status.text(now)
	for _, want := range []string{
		"signs: outrigger-ca (built-in CA in Secret outrigger-ca, trust domain cluster.local)",
		"trusted: outrigger-ca-2", "(in 20 days)", "workload " + now.Add(3*time.Hour).UTC().Format(time.RFC3339) + " (in 3 hours)",
		"proxies: 2, connected 1", "by anna",
		"trust   1/2 proxies trust the new authority; 1/1 outriggerd; behind: shop/web (it is not connected to outriggerd)",
		"! a root of authority outrigger-ca ends", "! the chart's values name mine", "run: outrigger certificate rotate --chart",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("status does not say %q:\n%s", want, text)
		}
	}
	state.Rotation, state.Chart = nil, builtIn("mine")
	state.Trusted = state.Trusted[1:]
	state.Signing, state.Serving = "outrigger-ca-2", "outrigger-ca-2"
	if status = newStatus(controller.Authorities{State: state, Chart: builtIn("mine")}, seen, nil, now); len(status.Faults) > 0 {
		t.Errorf("a mesh at rest has faults: %v", status.Faults)
	}
}

// TestStatusTellsOfTheUsersIntermediate wants a fault where nobody but people renews
// what is below the root.
func TestStatusTellsOfTheUsersIntermediate(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	vault := rotation.Authority{Name: "vault-mesh", TrustDomain: "cluster.local", Vault: &rotation.Vault{Address: "https://v:8200", Role: "mesh"}}
	for name, tc := range map[string]struct {
		authority rotation.Authority
		left      time.Duration
		told      bool
	}{
		"ends in an hour":          {builtIn("mine"), time.Hour, true},
		"has ended":                {builtIn("mine"), -time.Hour, true},
		"the mesh's own":           {builtIn("outrigger-ca"), 60 * 24 * time.Hour, false},
		"Vault's, in half an hour": {vault, 30 * time.Minute, false},
	} {
		state := rotation.NewState(tc.authority, rootPEM(t, now.AddDate(10, 0, 0)))
		seen := rotation.Seen{Replicas: []rotation.Replica{{Name: "outriggerd-1", Heard: true}}}
		reports := []rotation.Report{{Replica: "outriggerd-1", Until: now.Add(time.Minute), IntermediateEnd: now.Add(tc.left)}}
		status := newStatus(controller.Authorities{State: state}, seen, reports, now)
		if told := strings.Contains(strings.Join(status.Faults, "\n"), "an intermediate of authority "+tc.authority.Name+" ends"); told != tc.told {
			t.Errorf("%s: faults are %v; want one about the intermediate: %t", name, status.Faults, tc.told)
		}
	}
}

// TestSameAuthorityUnderAnotherName is how people let an issuer that has got another
// root be trusted with it.
func TestSameAuthorityUnderAnotherName(t *testing.T) {
	issuer := rotation.Authority{TrustDomain: "cluster.local", CertManager: &rotation.CertManager{Issuer: "mesh", Kind: "ClusterIssuer"}}.WithDefaults()
	now := controller.Authorities{State: rotation.NewState(issuer, "")}
	const to = "{certManager: {issuer: mesh, kind: ClusterIssuer}}"
	var a authorities
	for name, want := range map[string]string{"": "signs already", "cert-manager-mesh": "signs already", "again": ""} {
		next, err := a.authority(t.Context(), target{to: to, name: name}, now)
		if want == "" && (err != nil || next.Name != name) {
			t.Errorf("--name %q is %s, %v", name, next, err)
		}
		if want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("--name %q: %v does not say %q", name, err, want)
		}
	}
}

func TestReadAuthority(t *testing.T) {
	got, err := readAuthority("{certManager: {issuer: mesh, kind: ClusterIssuer}}")
	if err != nil || got.CertManager.Kind != "ClusterIssuer" {
		t.Errorf("YAML in words: %+v, %v", got, err)
	}
	for _, bad := range []string{"{certmanger: {issuer: mesh}}", "no-such-file.yaml"} {
		if _, err := readAuthority(bad); err == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
}

func TestRotateFlags(t *testing.T) {
	for args, want := range map[string]string{
		"rotate --force cart":             "NAMESPACE/POD",
		"rotate --to {} --secret s":       "none of the others can be",
		"recover":                         "say --yes",
		"status --output xml":             "text and json",
		"rotate --chart --trust-domain d": "none of the others can be",
	} {
		_, _, err := runCommand(t, "", append([]string{"certificate"}, strings.Fields(args)...)...)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v does not say %q", args, err, want)
		}
	}
}
