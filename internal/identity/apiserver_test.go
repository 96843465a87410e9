//go:build integration

package identity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/e2e/cluster/local"
)

// apiServer is shared by the tests, each of which has namespaces of its own.
var apiServer *local.APIServer

func TestMain(m *testing.M) { os.Exit(withAPIServer(m)) }

func withAPIServer(m *testing.M) int {
	ctx, cancel := context.WithCancel(context.Background()) //nolint:forbidigo // there is no test yet whose context it could be
	defer cancel()
	dir, err := os.MkdirTemp("", "identity")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if apiServer, err = local.StartAPIServer(ctx, dir); err != nil {
		fmt.Fprintln(os.Stderr, "start an API server:", err)
		return 1
	}
	defer apiServer.Stop()
	return m.Run()
}

// admin is a client that may do everything.
func admin(t testing.TB) client.Client {
	t.Helper()
	c, err := client.New(apiServer.Config, client.Options{})
	must(t, err)
	return c
}

// newHome makes a system namespace of that name, and in it outriggerd with the
// rights that the chart gives it and no others. The name is the mesh's too.
func newHome(t *testing.T, name string) (Home, *kubernetes.Clientset) {
	t.Helper()
	namespace(t, name, nil)
	grant(t, name)
	config := rest.CopyConfig(apiServer.Config)
	config.Impersonate = rest.ImpersonationConfig{
		UserName: "system:serviceaccount:" + name + ":outriggerd",
		Groups:   []string{"system:serviceaccounts", "system:serviceaccounts:" + name, "system:authenticated"},
	}
	c, err := client.New(config, client.Options{})
	must(t, err)
	set, err := kubernetes.NewForConfig(config)
	must(t, err)
	return Home{Client: c, Namespace: name, Mesh: name}, set
}

func namespace(t *testing.T, name string, labels map[string]string) {
	t.Helper()
	must(t, admin(t).Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}))
}

// grant applies the chart's own rules. Of its template they use the release's
// namespace and the mesh's name only, which are the same here, besides labels and
// conditions that hold by default.
func grant(t *testing.T, namespace string) {
	t.Helper()
	text, err := os.ReadFile("../../manifests/templates/rbac.yaml")
	must(t, err)
	text = regexp.MustCompile(`(?m)^.*\{\{-.*$`).ReplaceAll(text, nil)
	text = regexp.MustCompile(`\{\{ \.(Release\.Namespace|Values\.meshName) \}\}`).ReplaceAll(text, []byte(namespace))
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 1<<16)
	for {
		object := &unstructured.Unstructured{}
		err := decoder.Decode(&object.Object)
		if errors.Is(err, io.EOF) {
			return
		}
		must(t, err)
		if len(object.Object) > 0 {
			must(t, admin(t).Create(t.Context(), object))
		}
	}
}

// eventually waits for a condition that the API server brings about.
func eventually(t *testing.T, what string, ok func() error) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		<-tick.C
	}
}
