package identity

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// Names of the objects that this package keeps.
const (
	// CASecret holds the mesh's CA, in the system namespace.
	CASecret = "outrigger-ca"
	// TrustKey is the key of the roots in the ConfigMap [mesh.TrustConfigMap], PEM. In
	// the system namespace that also records that there is a CA.
	TrustKey = "ca.crt"
	// TrustLabel marks the ConfigMap as ours; its value is the mesh's name.
	TrustLabel = "outrigger.dev/trust"
)

// ErrNoCA is the error for a mesh whose CA is lost, damaged or replaced. It does
// not go away by itself: people must decide.
var ErrNoCA = errors.New("the mesh's CA cannot be used")

// A Home is where a mesh keeps its own objects.
type Home struct {
	// Client reads and writes the API server; it must not be a cache.
	Client client.Client
	// Namespace is the system namespace.
	Namespace string
	// Mesh is the mesh's name.
	Mesh string
}

// OpenCA returns the mesh's CA: that of a Secret of the user's, or one that is
// made at the first start. Any number of replicas may call it at the same moment:
// they all get the same CA. Where there was a CA before and now is none, or
// another, or what there is makes no sense, it returns ErrNoCA and changes
// nothing.
func OpenCA(ctx context.Context, home Home, cfg CAConfig) (*CA, error) {
	ca := &CA{home: home, cfg: cfg}
	// Before the Secret is read: a replica that sees a record sees its Secret.
	records, err := home.records(ctx)
	if err != nil {
		return nil, err
	}
	ca.data, err = home.readCA(ctx, ca.secret())
	switch {
	case !apierrors.IsNotFound(err) && err != nil:
		return nil, err
	case err == nil:
	case !ca.own():
		return nil, fmt.Errorf("%w: Secret %s/%s is missing; make it with the root or intermediate that the mesh is to sign with, or have the mesh make its own by naming no Secret",
			ErrNoCA, home.Namespace, ca.secret())
	case !cfg.Fresh && (len(records) > 0 || len(cfg.Roots) > 0):
		return nil, fmt.Errorf("%w: Secret %s/%s is missing, but %s says that there was one; restore it from a backup, "+
			"or begin anew with a root that no running pod trusts (docs/certificates.md)", ErrNoCA, home.Namespace, ca.secret(), witness(records))
	default:
		if ca.data, err = home.createCA(ctx, ca.secret(), cfg.TrustDomain); err != nil {
			return nil, err
		}
	}
	if ca.authority, err = home.useCA(ctx, cfg, records, ca.data); err != nil {
		return nil, err
	}
	if cfg.Fresh {
		return ca, nil // it is recorded when it is trusted
	}
	return ca, home.record(ctx, ca.authority.roots)
}

// witness says what knows of a CA.
func witness(records []corev1.ConfigMap) string {
	if len(records) == 0 {
		return "the record of the authorities"
	}
	return fmt.Sprintf("ConfigMap %s in %s", mesh.TrustConfigMap, places(records))
}

// readCA returns the data of a Secret.
func (h Home) readCA(ctx context.Context, name string) (map[string][]byte, error) {
	secret := &corev1.Secret{}
	if err := h.Client.Get(ctx, client.ObjectKey{Namespace: h.Namespace, Name: name}, secret); err != nil {
		return nil, fmt.Errorf("read Secret %s/%s: %w", h.Namespace, name, err)
	}
	return secret.Data, nil
}

// useCA returns the authority in a Secret's data if the mesh may use it: it is
// whole, signs what peers accept, and is no stranger to those who are recorded.
func (h Home) useCA(ctx context.Context, cfg CAConfig, records []corev1.ConfigMap, data map[string][]byte) (*authority, error) {
	ca := &CA{home: h, cfg: cfg}
	var err error
	if ca.authority, err = parseAuthority(data, time.Now()); err != nil {
		return nil, fmt.Errorf("%w: Secret %s/%s is damaged: %w", ErrNoCA, h.Namespace, ca.secret(), err)
	}
	switch {
	case cfg.Fresh:
	case len(cfg.Roots) > 0:
		if !slices.ContainsFunc(cfg.Roots, ca.authority.root.Equal) {
			return nil, fmt.Errorf("%w: Secret %s/%s holds another root than the mesh knows it by; restore the Secret from a backup, or rotate to a Secret of another name", ErrNoCA, h.Namespace, ca.secret())
		}
	default:
		if err := h.checkRecord(records, ca.secret(), ca.authority.root); err != nil {
			return nil, err
		}
	}
	// Constraints of the user's authorities, or a weak algorithm, show only when
	// somebody verifies a leaf.
	_, request, template, err := ownRequest(h.Namespace, cfg.TrustDomain, time.Hour)
	if err != nil {
		return nil, err
	}
	if _, err := issue(ctx, ca, request, template); err != nil {
		return nil, fmt.Errorf("%w: Secret %s/%s cannot sign for the mesh: %w", ErrNoCA, h.Namespace, ca.secret(), err)
	}
	return ca.authority, nil
}

// createCA writes a new CA, and returns its data or that of the one which another
// replica has just written.
func (h Home) createCA(ctx context.Context, name, trustDomain string) (map[string][]byte, error) {
	data, err := newCA(trustDomain, time.Now())
	if err != nil {
		return nil, err
	}
	secret, err := h.createSecret(ctx, name, data)
	if err != nil {
		return nil, err
	}
	return secret.Data, nil
}

func (h Home) createSecret(ctx context.Context, name string, data map[string][]byte) (*corev1.Secret, error) {
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: h.Namespace, Name: name}, Data: data}
	err := h.Client.Create(ctx, secret)
	if apierrors.IsAlreadyExists(err) {
		err = h.Client.Get(ctx, client.ObjectKeyFromObject(secret), secret)
	}
	if err != nil {
		return nil, fmt.Errorf("create Secret %s/%s: %w", h.Namespace, name, err)
	}
	return secret, nil
}

// records returns the trust ConfigMaps of this mesh.
func (h Home) records(ctx context.Context) ([]corev1.ConfigMap, error) {
	var list corev1.ConfigMapList
	// By name, because the right to list them is limited to that name.
	if err := h.Client.List(ctx, &list, client.MatchingFields{"metadata.name": mesh.TrustConfigMap}); err != nil {
		return nil, fmt.Errorf("list ConfigMaps %s: %w", mesh.TrustConfigMap, err)
	}
	return slices.DeleteFunc(list.Items, func(m corev1.ConfigMap) bool { return m.Labels[TrustLabel] != h.Mesh }), nil
}

// checkRecord refuses a root that the system namespace does not record: somebody
// replaced the CA, and every running pod would lose its peers.
func (h Home) checkRecord(records []corev1.ConfigMap, secret string, root *x509.Certificate) error {
	for _, m := range records {
		if m.Namespace != h.Namespace {
			continue
		}
		roots, err := parseCertificates([]byte(m.Data[TrustKey]))
		if err != nil {
			return fmt.Errorf("%w: %s of ConfigMap %s/%s is damaged: %w; delete the ConfigMap to have it written again from the Secret", ErrNoCA, TrustKey, m.Namespace, m.Name, err)
		}
		if !slices.ContainsFunc(roots, root.Equal) {
			return fmt.Errorf("%w: Secret %s/%s holds another root than ConfigMap %s/%s; restore the Secret from a backup, or delete the ConfigMap to accept the new root",
				ErrNoCA, h.Namespace, secret, m.Namespace, m.Name)
		}
	}
	return nil
}

// record writes down that there is a CA.
func (h Home) record(ctx context.Context, roots []*x509.Certificate) error {
	m := h.trust(h.Namespace, encodeCertificates(roots...))
	if err := h.Client.Create(ctx, m); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create ConfigMap %s/%s: %w", m.Namespace, m.Name, err)
	}
	return nil
}

func (h Home) trust(namespace string, roots []byte) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: mesh.TrustConfigMap, Labels: map[string]string{TrustLabel: h.Mesh}},
		Data:       map[string]string{TrustKey: string(roots)},
	}
}

func places(records []corev1.ConfigMap) string {
	const most = 3
	names := ""
	for i, m := range records {
		switch {
		case i == most:
			return names + " and others"
		case i > 0:
			names += ", "
		}
		names += m.Namespace
	}
	return names
}
