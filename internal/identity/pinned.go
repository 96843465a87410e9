package identity

import (
	"context"
	"crypto/x509"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// RootsConfigMap records the roots of external authorities, in the system
// namespace: PEM, in an entry for each authority, named for it.
const RootsConfigMap = "outrigger-roots"

// pinned returns the roots that are recorded for an authority. Where there are
// none it asks for them and records what it gets; never after that, so that an
// issuer which shows another root one day is not followed.
func (h Home) pinned(ctx context.Context, authority string, ask func(context.Context) ([]*x509.Certificate, error)) ([]*x509.Certificate, error) {
	key := client.ObjectKey{Namespace: h.Namespace, Name: RootsConfigMap}
	entry := authority + ".crt"
	record := &corev1.ConfigMap{}
	err := h.Client.Get(ctx, key, record)
	missing := apierrors.IsNotFound(err)
	if err != nil && !missing {
		return nil, fmt.Errorf("read ConfigMap %s: %w", key, err)
	}
	if text, ok := record.Data[entry]; ok {
		roots, err := parseCertificates([]byte(text))
		if err != nil {
			return nil, fmt.Errorf("read %s of ConfigMap %s, which records the authority's roots: %w; restore it, or remove it to have them asked for anew", entry, key, err)
		}
		return roots, nil
	}
	roots, err := ask(ctx)
	if err != nil {
		return nil, err
	}
	text := string(encodeCertificates(roots...))
	if missing {
		record = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}, Data: map[string]string{entry: text}}
		err = h.Client.Create(ctx, record)
	} else {
		if record.Data == nil {
			record.Data = map[string]string{}
		}
		record.Data[entry] = text
		err = h.Client.Update(ctx, record)
	}
	if err != nil { // also if another replica was faster: next time it is there
		return nil, fmt.Errorf("record the roots of %s in ConfigMap %s: %w", authority, key, err)
	}
	return roots, nil
}
