//go:build integration

package identity

import (
	"context"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// An external issuer answers as it likes. Its controller is this test, as any
// program may be.
func TestCertManagerExternalIssuer(t *testing.T) {
	startCertManager(t) // approves
	const name = "cm-external"
	m := newMeshIssuer(t, name)
	signs, stranger := testCA(t), testCA(t)
	m.cfg.Roots = string(encodeCertificates(signs.Roots()...))
	m.cfg.Issuer = cmmeta.IssuerReference{Name: "pki", Kind: "ExampleIssuer", Group: "pki.example.com"}
	c := m.open(t)
	good := func(ctx context.Context, r *x509.CertificateRequest, t Template) ([]*x509.Certificate, error) {
		return signs.Issue(ctx, r, t)
	}
	cases := map[string]struct {
		reason string
		after  time.Duration
		sign   func(context.Context, *x509.CertificateRequest, Template) ([]*x509.Certificate, error)
		want   string // of the error; empty for none
	}{
		"Good": {reason: "Whoever signs, the rules are the same.", sign: good},
		"Slow": {reason: "An issuer may take its time.", after: 12 * time.Second, sign: good},
		"OtherName": {
			reason: "It gives somebody else's name.", want: "they must be exactly",
			sign: func(ctx context.Context, r *x509.CertificateRequest, tpl Template) ([]*x509.Certificate, error) {
				other := newTemplate(mesh.Identity{Namespace: "shop", ServiceAccount: "admin"}, trustDomain, tpl.PodUID, tpl.Lifetime)
				return signs.Issue(ctx, r, other)
			},
		},
		"NoPod": {
			reason: "It makes subjects by a rule of its own; the address will tell the pod apart.",
			sign: func(ctx context.Context, r *x509.CertificateRequest, tpl Template) ([]*x509.Certificate, error) {
				tpl.PodUID = ""
				return signs.Issue(ctx, r, tpl)
			},
		},
		"OtherPod": {
			reason: "It names another pod.", want: "serial number",
			sign: func(ctx context.Context, r *x509.CertificateRequest, tpl Template) ([]*x509.Certificate, error) {
				tpl.PodUID = "another"
				return signs.Issue(ctx, r, tpl)
			},
		},
		"OtherKey": {
			reason: "It signs a key of its own.", want: "another key",
			sign: func(ctx context.Context, r *x509.CertificateRequest, tpl Template) ([]*x509.Certificate, error) {
				other := *r
				other.PublicKey = p256(t).Public()
				return signs.Issue(ctx, &other, tpl)
			},
		},
		"TooLong": {
			reason: "It is good for longer than asked for.", want: "longer than",
			sign: func(ctx context.Context, r *x509.CertificateRequest, tpl Template) ([]*x509.Certificate, error) {
				tpl.Lifetime = 48 * time.Hour
				return signs.Issue(ctx, r, tpl)
			},
		},
		"OtherRoot": {reason: "Its root is another.", want: "unknown authority", sign: func(ctx context.Context, r *x509.CertificateRequest, tpl Template) ([]*x509.Certificate, error) {
			return stranger.Issue(ctx, r, tpl)
		}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			answered := make(chan error, 1)
			request, template := asked(t, strings.ToLower(name))
			go func() {
				_, err := issue(t.Context(), c, request, template)
				answered <- err
			}()
			answer(t, m.home.Namespace, tc.after, func() ([]*x509.Certificate, error) { return tc.sign(t.Context(), request, template) })
			err := <-answered
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("%s\ngot %v, want an error with %q", tc.reason, err, tc.want)
			}
			wantNoRequests(t, m.home.Namespace)
		})
	}
}

// answer does what the controller of an external issuer does: it waits until the
// request is approved, and writes the certificate.
func answer(t *testing.T, namespace string, after time.Duration, sign func() ([]*x509.Certificate, error)) {
	t.Helper()
	api := certManagerClient(t, apiServer.Config)
	approved := func() (*cmapi.CertificateRequest, error) {
		found := requests(t, namespace)
		if len(found) != 1 || len(found[0].Status.Conditions) == 0 {
			return nil, errors.New("there is none that is approved")
		}
		return &found[0], nil
	}
	eventually(t, "an approved CertificateRequest", func() error { _, err := approved(); return err })
	<-time.After(after)
	eventually(t, "the answer is written", func() error {
		request, err := approved()
		if err != nil {
			return err
		}
		chain, err := sign()
		must(t, err)
		request.Status.Certificate = encodeCertificates(chain...)
		now := metav1.Now()
		request.Status.Conditions = append(request.Status.Conditions, cmapi.CertificateRequestCondition{
			Type: cmapi.CertificateRequestConditionReady, Status: cmmeta.ConditionTrue, Reason: cmapi.CertificateRequestReasonIssued, LastTransitionTime: &now,
		})
		return api.Status().Update(t.Context(), request)
	})
}
