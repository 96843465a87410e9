//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/e2e/harness"
	"github.com/outrigger-mesh/outrigger/e2e/osm"
	"github.com/outrigger-mesh/outrigger/internal/rotation"
)

// root is a MeshRootCertificate of the mesh's own CA. It is called like its Secret,
// and so is its authority.
func root(secret, trustDomain, role string) string {
	return fmt.Sprintf(`apiVersion: config.openservicemesh.io/v1alpha2
kind: MeshRootCertificate
metadata: {namespace: %[1]s, name: %[2]s}
spec:
  role: %[4]s
  trustDomain: %[3]s
  provider: {tresor: {ca: {secretRef: {name: %[2]s, namespace: %[1]s}}}}
`, harness.SystemNamespace, secret, trustDomain, role)
}

// What the conditions of a root say once its role is reached: it signs, it is trusted
// and does not sign, or neither.
const (
	signs     = "Accepted=True ValidatingRollout=True IssuingRollout=True"
	validates = "Accepted=True ValidatingRollout=True IssuingRollout=False"
	unused    = "Accepted=True ValidatingRollout=False IssuingRollout=False"
)

// conditionsOf returns a root's, and what each says, as soon as they are about what is
// written now.
func conditionsOf(ctx context.Context, name string) (short, long string, err error) {
	u := &unstructured.Unstructured{}
	u.SetAPIVersion("config.openservicemesh.io/v1alpha2")
	u.SetKind("MeshRootCertificate")
	if err := cluster.Client.Get(ctx, client.ObjectKey{Namespace: harness.SystemNamespace, Name: name}, u); err != nil {
		return "", "", err
	}
	text, err := json.Marshal(u.Object["status"])
	if err != nil {
		return "", "", err
	}
	var status struct{ Conditions []metav1.Condition }
	if err := json.Unmarshal(text, &status); err != nil {
		return "", "", fmt.Errorf("read the status of MeshRootCertificate %s: %w", name, err)
	}
	var words []string
	for _, c := range status.Conditions {
		if c.ObservedGeneration != u.GetGeneration() {
			return "", "", fmt.Errorf("MeshRootCertificate %s is at generation %d; its conditions are %s", name, u.GetGeneration(), text)
		}
		words = append(words, fmt.Sprintf("%s=%s", c.Type, c.Status))
	}
	return strings.Join(words, " "), string(text), nil
}

// A roleStep is a row of OSM's table: the roles of two roots, and what comes of them.
type roleStep struct {
	roles, conditions [2]string
	// signing is which of them signs then.
	signing int
	trusted []int
}

// roleSteps is how OSM changes a root. Of two active ones that which signs goes on.
func roleSteps() []roleStep {
	return []roleStep{
		{[2]string{"active", "inactive"}, [2]string{signs, unused}, 0, []int{0}},
		{[2]string{"active", "passive"}, [2]string{signs, validates}, 0, []int{0, 1}},
		{[2]string{"active", "active"}, [2]string{signs, validates}, 0, []int{0, 1}},
		{[2]string{"passive", "active"}, [2]string{validates, signs}, 1, []int{0, 1}},
		{[2]string{"inactive", "active"}, [2]string{unused, signs}, 1, []int{1}},
	}
}

// rolesLeadTo moves the mesh, as OSM does, from the own root that signs in a trust
// domain to that in another Secret and the trust domain cluster.local: by editing the
// roles of MeshRootCertificates, whose kind and objects are gone in the end. told is
// called when a step is reached.
func rolesLeadTo(t *testing.T, secret, leaving string, told func(trustDomain string)) {
	t.Helper()
	now, err := statusOfCertificates(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	secrets, domains := [2]string{now.Signing, secret}, [2]string{leaving, "cluster.local"}
	apply(t, "%s", osm.MeshRootCertificates)
	t.Cleanup(func() {
		if err := cluster.Delete(context.WithoutCancel(t.Context()), osm.MeshRootCertificates); err != nil {
			t.Error(err)
		}
	})
	for _, step := range roleSteps() {
		for i, name := range secrets {
			eventually(t, func(ctx context.Context) error { // the kind is served a moment after it is made
				return cluster.Apply(ctx, root(name, domains[i], step.roles[i]))
			})
		}
		if err := harness.Eventually(t.Context(), rotationTime, func(ctx context.Context) error { return reached(ctx, step, secrets) }); err != nil {
			t.Fatalf("roles %v: %v", step.roles, err)
		}
		told(domains[step.signing])
		t.Logf("%s is %s and %s is %s", secrets[0], step.roles[0], secrets[1], step.roles[1])
	}
	secondActive := cluster.Apply(t.Context(), root("second", "cluster.local", "active"))
	want := "cannot create MRC " + harness.SystemNamespace + "/second with active role. An MRC with this role already exists in the control plane namespace."
	if secondActive == nil || !strings.Contains(secondActive.Error(), want) {
		t.Errorf("a second active root: %v; want %q", secondActive, want)
	}
	withdraw(t, osm.MeshRootCertificates+"---\n"+root(secrets[0], "", "")+"---\n"+root(secrets[1], "", ""))
	eventually(t, func(ctx context.Context) error {
		// The command line may decide again, and has nothing to do.
		said, err := cluster.CLI(ctx, "certificate", "rotate", "--secret", secret, "--no-wait")
		if err == nil || !strings.Contains(err.Error(), "signs already") {
			return fmt.Errorf("without roles a rotation to the root that signs said %q, %w", said, err)
		}
		return nil
	})
}

// reached wants a step of OSM's table to be done.
func reached(ctx context.Context, step roleStep, names [2]string) error {
	for i, name := range names {
		got, text, err := conditionsOf(ctx, name)
		if err != nil {
			return err
		}
		if got != step.conditions[i] {
			return fmt.Errorf("MeshRootCertificate %s: %s\nwant %s\n%s", name, got, step.conditions[i], text)
		}
	}
	s, err := statusOfCertificates(ctx)
	if err != nil {
		return err
	}
	var trusted, want []string
	for _, a := range s.Authorities {
		trusted = append(trusted, a.Name)
	}
	for _, i := range step.trusted {
		want = append(want, names[i])
	}
	slices.Sort(want)
	if s.Rotation != nil || s.Signing != names[step.signing] || !slices.Equal(trusted, want) {
		return fmt.Errorf("%s signs, %v are trusted, under way is %+v; want %s, %v and nothing", s.Signing, trusted, s.Rotation, names[step.signing], want)
	}
	return nil
}

// dropRoots deletes those of the mesh's own roots that are of no use any more.
func dropRoots(t *testing.T, but string) {
	t.Helper()
	for _, name := range rotation.OwnSecrets() {
		if name == but {
			continue
		}
		withdraw(t, fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {namespace: %s, name: %s}\n", harness.SystemNamespace, name))
	}
}
