//go:build integration

package main

import (
	"io"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/e2e/cluster/local"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// TestUninstallKeepsNamespacesOfOthers runs against a real API server. No
// controller runs there, so a deleted namespace stays and has the time of it.
func TestUninstallKeepsNamespacesOfOthers(t *testing.T) {
	server, err := local.StartAPIServer(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	c, err := client.New(server.Config, client.Options{Scheme: newScheme()})
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		reason               string
		made                 bool // install made the namespace
		installed            bool
		wantGone, wantSecret bool
	}{
		"made":      {reason: "all of it goes", made: true, installed: true, wantGone: true, wantSecret: true},
		"half-made": {reason: "an uninstall that was broken off is finished", made: true, wantGone: true, wantSecret: true},
		"lent":      {reason: "the namespace was there before; the CA in it is the mesh's", installed: true},
		"slip":      {reason: "a slip of --system-namespace costs nothing", wantSecret: true},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			in := installation{flags: genericclioptions.NewConfigFlags(true), namespace: name, timeout: time.Minute, out: io.Discard, started: time.Now()}
			*in.flags.KubeConfig = server.Kubeconfig
			namespace, secret, trust := &corev1.Namespace{}, &corev1.Secret{}, &corev1.ConfigMap{}
			trust.Namespace, trust.Name = "default", mesh.TrustConfigMap // of a mesh elsewhere
			if err := c.Create(t.Context(), trust.DeepCopy()); client.IgnoreAlreadyExists(err) != nil {
				t.Fatal(err)
			}
			namespace.Name, secret.Namespace, secret.Name = name, name, "outrigger-ca"
			if !tc.made {
				if err := c.Create(t.Context(), namespace.DeepCopy()); err != nil {
					t.Fatal(err)
				}
			}
			// Where there is one, it is left as it is.
			if err := in.makeNamespace(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			if err := c.Create(t.Context(), secret.DeepCopy()); err != nil {
				t.Fatal(err)
			}
			var err error
			if tc.installed { // what comes after Helm's part
				err = in.removeNamespace(t.Context(), c)
			} else {
				err = in.uninstall(t.Context(), false)
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Get(t.Context(), client.ObjectKeyFromObject(namespace), namespace); err != nil {
				t.Fatal(err)
			}
			if gone := namespace.DeletionTimestamp != nil; gone != tc.wantGone {
				t.Errorf("the namespace was deleted: %t, want %t: %s", gone, tc.wantGone, tc.reason)
			}
			err = c.Get(t.Context(), client.ObjectKeyFromObject(secret), secret)
			if client.IgnoreNotFound(err) != nil {
				t.Fatal(err)
			}
			if err := c.Get(t.Context(), client.ObjectKeyFromObject(trust), trust); name == "slip" && err != nil {
				t.Errorf("the roots of a mesh elsewhere: %v", err)
			}
			if there := !apierrors.IsNotFound(err); there != tc.wantSecret {
				t.Errorf("the CA is there: %t, want %t: %s", there, tc.wantSecret, tc.reason)
			}
		})
	}
}
