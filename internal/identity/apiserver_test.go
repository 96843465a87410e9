//go:build integration

package identity

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"helm.sh/helm/v4/pkg/strvals"
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
	//nolint:forbidigo // there is no test yet whose context it could be
	return local.WithAPIServer(context.Background(), func(server *local.APIServer) int {
		apiServer = server
		return m.Run()
	})
}

// admin is a client that may do everything.
func admin(t testing.TB) client.Client {
	t.Helper()
	c, err := client.New(apiServer.Config, client.Options{})
	must(t, err)
	return c
}

// newHome makes a system namespace of that name, and in it outriggerd with the
// rights that the chart gives it and no others. The name is the mesh's too. The
// values are for the chart, each of the form a.b.c=value.
func newHome(t *testing.T, name string, values ...string) (Home, *kubernetes.Clientset) {
	t.Helper()
	namespace(t, name, nil)
	grant(t, name, values)
	config := outriggerd(name)
	c, err := client.New(config, client.Options{})
	must(t, err)
	set, err := kubernetes.NewForConfig(config)
	must(t, err)
	return Home{Client: c, Namespace: name, Mesh: name}, set
}

// outriggerd is how outriggerd of a system namespace reaches the API server.
func outriggerd(namespace string) *rest.Config {
	config := rest.CopyConfig(apiServer.Config)
	config.Impersonate = rest.ImpersonationConfig{
		UserName: "system:serviceaccount:" + namespace + ":outriggerd",
		Groups:   []string{"system:serviceaccounts", "system:serviceaccounts:" + namespace, "system:authenticated"},
	}
	return config
}

func namespace(t *testing.T, name string, labels map[string]string) {
	t.Helper()
	must(t, admin(t).Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}))
}

// grant applies the chart's own rules.
func grant(t *testing.T, namespace string, values []string) {
	t.Helper()
	chart, err := loader.LoadDir("../../manifests")
	must(t, err)
	given := map[string]any{}
	for _, value := range append(values, "meshName="+namespace) {
		must(t, strvals.ParseInto(value, given))
	}
	all, err := util.ToRenderValues(chart, given, common.ReleaseOptions{Namespace: namespace}, nil)
	must(t, err)
	rendered, err := engine.Render(chart, all)
	must(t, err)
	decoder := yaml.NewYAMLOrJSONDecoder(strings.NewReader(rendered["outrigger/templates/rbac.yaml"]), 1<<16)
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

func kubernetesClient(t testing.TB, config *rest.Config) *kubernetes.Clientset {
	t.Helper()
	set, err := kubernetes.NewForConfig(config)
	must(t, err)
	return set
}
