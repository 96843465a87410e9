//go:build integration

package local

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// TestStartAPIServer shows that several API servers run side by side, that they
// keep their objects apart, and that a stopped one is gone.
func TestStartAPIServer(t *testing.T) {
	servers := make([]*APIServer, 2)
	var group errgroup.Group
	for i := range servers {
		dir := t.TempDir()
		group.Go(func() error {
			var err error
			servers[i], err = StartAPIServer(t.Context(), dir)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, server := range servers {
			server.Stop()
		}
	})

	first, second := kubernetes.NewForConfigOrDie(servers[0].Config), kubernetes.NewForConfigOrDie(servers[1].Config)
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "bookstore"}}
	if _, err := first.CoreV1().Namespaces().Create(t.Context(), namespace, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := second.CoreV1().Namespaces().Get(t.Context(), "bookstore", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("an object of the first API server is known to the second: got error %v, want not found", err)
	}
	version, err := first.Discovery().ServerVersion()
	if err != nil {
		t.Fatal(err)
	}
	if want := "v1.37.2"; version.GitVersion != want {
		t.Errorf("the API server calls itself %s, want %s", version.GitVersion, want)
	}

	anonymous := rest.AnonymousClientConfig(servers[0].Config)
	_, err = kubernetes.NewForConfigOrDie(anonymous).CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{})
	if !apierrors.IsForbidden(err) {
		t.Errorf("a caller without credentials lists namespaces: got error %v, want forbidden", err)
	}

	servers[1].Stop()
	if err := getOK(t.Context(), http.DefaultClient, servers[1].Config.Host); err == nil {
		t.Error("a stopped API server still answers")
	}
	if _, err := first.CoreV1().Namespaces().Get(t.Context(), "bookstore", metav1.GetOptions{}); err != nil {
		t.Errorf("stopping one API server disturbed the other: %v", err)
	}
}

func TestStartAPIServerSaysWhyItFailed(t *testing.T) {
	_, err := StartAPIServer(t.Context(), t.TempDir(), "--no-such-flag")
	if err == nil {
		t.Fatal("an unknown flag was accepted")
	}
	if want := "unknown flag: --no-such-flag"; !strings.Contains(err.Error(), want) {
		t.Errorf("got error %q, want it to say %q", err, want)
	}
}

func TestStartAPIServerEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	server, err := StartAPIServer(ctx, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	<-server.server.done
	<-server.etcd.done
	if server.server.failed() == nil {
		t.Error("the API server counts as running after its context ended")
	}
	_, err = StartAPIServer(ctx, t.TempDir())
	if !errors.Is(err, context.Canceled) {
		t.Errorf("started with a cancelled context: got error %v, want %v", err, context.Canceled)
	}
}
