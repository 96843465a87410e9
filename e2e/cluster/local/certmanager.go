package local

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"
)

// A CertManager is a running process with cert-manager's own controllers. It
// signs with Issuers and ClusterIssuers of the kinds SelfSigned and CA.
type CertManager struct {
	// Log is the path of its log.
	Log string

	child *child
}

// StartCertManager builds cert-manager's controllers if the cache does not hold
// them, gives the API server that kubeconfig names the kinds that they need, and
// starts them with their log in dir. It returns when they run. More flags may be given, such as
// --without=certificaterequests-approver. The process ends at the latest with ctx
// or with the calling process; the kinds stay.
func StartCertManager(ctx context.Context, kubeconfig, dir string, flags ...string) (*CertManager, error) {
	if err := InstallCertManagerKinds(ctx, kubeconfig); err != nil {
		return nil, err
	}
	config, err := Config{}.complete()
	if err != nil {
		return nil, err
	}
	tools, err := config.build(ctx, "cert-manager")
	if err != nil {
		return nil, err
	}
	c := &CertManager{Log: filepath.Join(dir, "cert-manager.log")}
	if c.child, err = startChild(ctx, tools["cert-manager"], c.Log, append([]string{"--kubeconfig=" + kubeconfig}, flags...)); err != nil {
		return nil, err
	}
	err = wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, time.Minute, true, func(context.Context) (bool, error) {
		if err := c.Failed(); err != nil {
			return false, err
		}
		text, err := os.ReadFile(c.Log)
		return bytes.Contains(text, []byte(certManagerStarted)), err
	})
	if err != nil {
		c.Stop()
		return nil, fmt.Errorf("wait for cert-manager: %w", err)
	}
	return c, nil
}

// certManagerStarted is what its main prints.
const certManagerStarted = "cert-manager's controllers are started"

// Failed returns nil while the process runs, and after that why it does not.
func (c *CertManager) Failed() error { return c.child.failed() }

// Stop ends the process and returns when it is gone.
func (c *CertManager) Stop() { c.child.stop() }

// InstallCertManagerKinds creates cert-manager's CRDs where they are missing, and
// returns when they are served.
func InstallCertManagerKinds(ctx context.Context, kubeconfig string) error {
	api, crds, err := certManagerKinds(ctx, kubeconfig)
	if err != nil {
		return err
	}
	for _, crd := range crds {
		if err := api.Create(ctx, crd); client.IgnoreAlreadyExists(err) != nil {
			return fmt.Errorf("create CRD %s: %w", crd.Name, err)
		}
	}
	return wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		for _, crd := range crds {
			if err := api.Get(ctx, client.ObjectKeyFromObject(crd), crd); err != nil || !established(crd) {
				return false, err
			}
		}
		return true, nil
	})
}

// RemoveCertManagerKinds deletes cert-manager's CRDs, and with them all objects of
// these kinds, and returns when they are gone.
func RemoveCertManagerKinds(ctx context.Context, kubeconfig string) error {
	api, crds, err := certManagerKinds(ctx, kubeconfig)
	if err != nil {
		return err
	}
	for _, crd := range crds {
		if err := api.Delete(ctx, crd); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("delete CRD %s: %w", crd.Name, err)
		}
	}
	return wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		for _, crd := range crds {
			if err := api.Get(ctx, client.ObjectKeyFromObject(crd), crd); err == nil || client.IgnoreNotFound(err) != nil {
				return false, client.IgnoreNotFound(err)
			}
		}
		return true, nil
	})
}

func established(crd *apiextensionsv1.CustomResourceDefinition) bool {
	for _, condition := range crd.Status.Conditions {
		if condition.Type == apiextensionsv1.Established && condition.Status == apiextensionsv1.ConditionTrue {
			return true
		}
	}
	return false
}

// certManagerKinds returns the CRDs of the version of cert-manager that is built
// here, and a client for them.
func certManagerKinds(ctx context.Context, kubeconfig string) (client.Client, []*apiextensionsv1.CustomResourceDefinition, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, nil, err
	}
	api, err := crdClient(config)
	if err != nil {
		return nil, nil, err
	}
	source, err := Config{}.source("e2e", "tools", "certmanager")
	if err != nil {
		return nil, nil, err
	}
	const module = "github.com/cert-manager/cert-manager"
	if _, err := output(ctx, source, "go", "mod", "download", module); err != nil {
		return nil, nil, fmt.Errorf("find cert-manager's CRDs: %w", err)
	}
	folder, err := output(ctx, source, "go", "list", "-m", "-f", "{{.Dir}}", module)
	if err != nil {
		return nil, nil, fmt.Errorf("find cert-manager's CRDs: %w", err)
	}
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(folder), "deploy", "crds", "*.yaml"))
	if err != nil || len(files) == 0 {
		return nil, nil, fmt.Errorf("find cert-manager's CRDs in %s: there are none (%w)", folder, err)
	}
	var crds []*apiextensionsv1.CustomResourceDefinition
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, nil, err
		}
		crd := &apiextensionsv1.CustomResourceDefinition{}
		if err := yaml.Unmarshal(text, crd); err != nil {
			return nil, nil, fmt.Errorf("read %s: %w", file, err)
		}
		crds = append(crds, crd)
	}
	return api, crds, nil
}

func crdClient(config *rest.Config) (client.Client, error) {
	scheme := runtime.NewScheme()
	if err := apiextensionsv1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	return client.New(config, client.Options{Scheme: scheme})
}
