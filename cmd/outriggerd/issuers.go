package main

import (
	"context"
	"fmt"
	"strings"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/internal/identity"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// longestNote is how much of an issuer's words is told in an Event, which may have
// 1 kB in all.
const longestNote = 900

// openIssuer makes an authority usable: it is there that each kind of authority
// gets its Issuer. The issuer calls changed when its roots are other ones. It is
// tried again after an error, so it leaves nothing behind then.
func (p *plane) openIssuer(ctx context.Context, a identity.Authority, known identity.Known, changed func()) (identity.Issuer, error) {
	switch {
	case a.CertManager != nil:
		return p.openCertManager(ctx, a, known, changed)
	case a.BuiltIn != nil:
		return identity.OpenCA(ctx, p.home, identity.CAConfig{
			TrustDomain: a.TrustDomain, Secret: a.BuiltIn.Secret, Roots: known.Roots, Fresh: known.Fresh, Changed: changed,
		})
	case a.Vault != nil:
		return identity.OpenVault(ctx, p.home, identity.VaultConfig{Authority: a.Name, Vault: *a.Vault, TokenFile: p.cfg.vaultTokenFile, Known: known})
	default:
		return nil, fmt.Errorf("authority %s is of kind %q, which this outriggerd does not know", a.Name, a.Kind())
	}
}

// openCertManager connects to cert-manager.
func (p *plane) openCertManager(ctx context.Context, a identity.Authority, known identity.Known, changed func()) (identity.Issuer, error) {
	scheme := runtime.NewScheme()
	if err := cmapi.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("register cert-manager's kinds: %w", err)
	}
	api, err := client.NewWithWatch(p.rest, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("connect to the API server: %w", err)
	}
	return identity.OpenCertManager(ctx, identity.CertManagerConfig{
		Home: p.home, Client: api, Authority: a.Name, TrustDomain: a.TrustDomain, Changed: changed,
		Issuer: cmmeta.IssuerReference{Name: a.CertManager.Issuer, Kind: a.CertManager.Kind, Group: a.CertManager.Group},
		Roots:  a.CertManager.Roots, RootsConfigMap: a.CertManager.RootsConfigMap, Known: known,
	})
}

// declined tells the users of a pod that the issuer did not sign its certificate.
func (p *plane) declined(pod mesh.ProxyID, why error) {
	about := &corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Pod, UID: types.UID(pod.UID)}
	text := why.Error()
	p.mgr.GetEventRecorder("outriggerd").Eventf(about, nil, corev1.EventTypeWarning, "CertificateNotSigned", "Sign",
		"The issuer did not sign the certificate of this pod's proxy: %s", strings.ToValidUTF8(text[:min(len(text), longestNote)], ""))
}
