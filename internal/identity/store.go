package identity

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Names of the objects that this package keeps.
const (
	// CASecret holds the mesh's CA, in the system namespace.
	CASecret = "outrigger-ca"
	// TrustConfigMap holds the roots, in each namespace of the mesh and in the
	// system namespace, where it also records that there is a CA.
	TrustConfigMap = "outrigger-trust"
	// TrustKey is the key of the roots in it, PEM.
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

// OpenCA returns the mesh's CA, and makes it at the first start. Any number of
// replicas may call it at the same moment: they all get the same CA. Where there
// was a CA before and now is none, or another, or what there is makes no sense,
// it returns ErrNoCA and changes nothing.
func OpenCA(ctx context.Context, home Home, trustDomain string) (*CA, error) {
	// Before the Secret is read: a replica that sees a record sees its Secret.
	records, err := home.records(ctx)
	if err != nil {
		return nil, err
	}
	secret := &corev1.Secret{}
	err = home.Client.Get(ctx, client.ObjectKey{Namespace: home.Namespace, Name: CASecret}, secret)
	switch {
	case apierrors.IsNotFound(err) && len(records) > 0:
		return nil, fmt.Errorf("%w: Secret %s/%s is missing, but ConfigMap %s in %s says that there was one; restore it from a backup, "+
			"or, to begin anew with a root that no running pod trusts, delete that ConfigMap from every namespace", ErrNoCA, home.Namespace, CASecret, TrustConfigMap, places(records))
	case apierrors.IsNotFound(err):
		if secret, err = home.createCA(ctx, trustDomain); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, fmt.Errorf("read Secret %s/%s: %w", home.Namespace, CASecret, err)
	}
	ca, err := parseCA(secret.Data, time.Now())
	if err != nil {
		return nil, fmt.Errorf("%w: Secret %s/%s is damaged: %w", ErrNoCA, home.Namespace, CASecret, err)
	}
	if err := home.checkRecord(records, ca); err != nil {
		return nil, err
	}
	return ca, home.record(ctx, ca)
}

// createCA writes a new CA, or returns the one that another replica has just
// written.
func (h Home) createCA(ctx context.Context, trustDomain string) (*corev1.Secret, error) {
	data, err := newCA(trustDomain, time.Now())
	if err != nil {
		return nil, err
	}
	return h.createSecret(ctx, CASecret, data)
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
	if err := h.Client.List(ctx, &list, client.MatchingFields{"metadata.name": TrustConfigMap}); err != nil {
		return nil, fmt.Errorf("list ConfigMaps %s: %w", TrustConfigMap, err)
	}
	return slices.DeleteFunc(list.Items, func(m corev1.ConfigMap) bool { return m.Labels[TrustLabel] != h.Mesh }), nil
}

// checkRecord refuses a CA other than the one that the system namespace records:
// somebody replaced it, and every running pod would lose its peers.
func (h Home) checkRecord(records []corev1.ConfigMap, ca *CA) error {
	for _, m := range records {
		if m.Namespace != h.Namespace {
			continue
		}
		roots, err := parseCertificates([]byte(m.Data[TrustKey]))
		if err != nil {
			return fmt.Errorf("%w: %s of ConfigMap %s/%s is damaged: %w; delete the ConfigMap to have it written again from the Secret", ErrNoCA, TrustKey, m.Namespace, m.Name, err)
		}
		if !slices.ContainsFunc(roots, ca.root.Equal) {
			return fmt.Errorf("%w: Secret %s/%s holds another root than ConfigMap %s/%s; restore the Secret from a backup, or delete the ConfigMap to accept the new root",
				ErrNoCA, h.Namespace, CASecret, m.Namespace, m.Name)
		}
	}
	return nil
}

// record writes down that there is a CA.
func (h Home) record(ctx context.Context, ca *CA) error {
	m := h.trust(h.Namespace, encodeCertificates(ca.Roots()...))
	if err := h.Client.Create(ctx, m); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create ConfigMap %s/%s: %w", m.Namespace, m.Name, err)
	}
	return nil
}

func (h Home) trust(namespace string, roots []byte) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: TrustConfigMap, Labels: map[string]string{TrustLabel: h.Mesh}},
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
