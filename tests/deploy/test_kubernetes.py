"""The manifest fits the image: its port, its user, its folder, its health check. No cluster is asked."""

import re

import yaml

from ..docker.test_files import instructions
from ..unit.test_layers import ROOT


def test_the_manifest_fits_the_image():
    documents = list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text("utf-8")))
    volume, deployment, service = documents
    assert [document["kind"] for document in documents] == ["PersistentVolumeClaim", "Deployment", "Service"]
    pod = deployment["spec"]["template"]
    container, = pod["spec"]["containers"]
    port, = container["ports"]
    assert str(port["containerPort"]) in instructions("EXPOSE")[0].split()
    assert "{runAsUser}:{runAsGroup}".format(**pod["spec"]["securityContext"]) == instructions("USER")[0]
    mount, = container["volumeMounts"]
    assert all(folder.startswith(f"{mount['mountPath']}/") for folder in yaml.safe_load(instructions("VOLUME")[0]))
    assert pod["spec"]["volumes"] == [{"name": mount["name"],
                                       "persistentVolumeClaim": {"claimName": volume["metadata"]["name"]}}]
    path = re.search(r"8188(/\w+)", instructions("HEALTHCHECK")[0])[1]
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["httpGet"] == {"path": path, "port": port["name"]}
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    known = instructions("ENV")[0]
    assert all(f"{variable['name']}=" in known for variable in container["env"])
    assert service["spec"]["selector"] == pod["metadata"]["labels"] == deployment["spec"]["selector"]["matchLabels"]
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
