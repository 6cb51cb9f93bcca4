"""The part of the module's logic that trains networks and finds poses by them."""

from __future__ import annotations

from pathlib import Path

from DiffDRRSlicerLib import scene


class LearningLogic:
    """Methods of `DiffDRRSlicerLogic`: a training is a process of its own, known by its folder."""

    def startTraining(self, carm, ct, folder, labels=None, **settings) -> Path:
        """Train a network for this CT, on simulated X-rays from about where the C-arm stands; returns the run's folder.

        It goes on when Slicer is closed. The best network so far is the file model.safetensors there. The folder keeps
        a compressed copy of the CT, which resuming needs: `clearTraining` removes it.

        :param folder: where the run's folder is made.
        :param settings: of `scene.training.TrainingSettings`: primary, secondary, roll (degrees to both sides), shift,
            depth (mm), steps, size, backbone, device, threads, ...
        """
        anatomy, arm = scene.anatomy.Anatomy(ct, labels), scene.carm.CArmNode(carm)
        run = scene.training.prepare_training(folder, arm, anatomy, scene.training.TrainingSettings.of(**settings))
        run.start()
        return run.folder

    def stopTraining(self, folder) -> None:
        """Ask the training in a run's folder to end after its step; what it has learned is kept."""
        scene.training_run.TrainingRun(folder).stop()

    def resumeTraining(self, folder) -> None:
        """Go on with the training in a run's folder, from its last checkpoint."""
        scene.training_run.TrainingRun(folder).resume()

    def clearTraining(self, folder) -> None:
        """Remove the copy of the CT from a run's folder, and what else only resuming needs; the network stays."""
        scene.training_run.TrainingRun(folder).clear()

    def trainingState(self, folder):
        """How the training in a run's folder stands: status, step, steps, seconds_left, loss, best, message."""
        return scene.training_run.TrainingRun(folder).state

    def findPose(
        self,
        carm,
        ct,
        model,
        labels=None,
        refine=True,
        candidates=True,
        progress=None,
        warp=None,
        invertWarp=False,
        **options,
    ):
        """Find the pose by a network, from wherever the C-arm stands, then register from there; moves the C-arm.

        :param carm: a C-arm node with an X-ray, or a list of them, which stay fixed to each other.
        :param model: file of a network.
        :param candidates: whether to try the opposite and the mirrored views, too.
        :param progress, options: as of `register`; region and collimator count for the network, too.
        :param warp: of a network that was trained in the frame of a template, the rigid transform between this CT and
            that: a transform node that takes the CT's own points to the template's, or an ITK file, as in the training
            (`invertWarp`: one that takes the template's points to the CT's).
        :return: the outcome as of `register`; without `refine` what the network says: pose, covariance, similarity.
        """
        carms = [scene.carm.CArmNode(one) for one in (carm if isinstance(carm, (list, tuple)) else [carm])]
        anatomy = scene.anatomy.Anatomy(ct, labels)
        run = scene.network_pose.NetworkRegistration(
            anatomy, carms, model, refine, candidates, warp, invertWarp, **options
        )
        for step in run.steps():
            if progress is not None and progress(step) is False:
                run.cancel()  # what is left measures the best pose so far
        return run.outcome if refine else run.prediction
